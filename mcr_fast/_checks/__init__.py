"""Argument checks at the public edge: they raise before any work and name what was wanted.

Nothing here waits for a device. Checks that read a tensor's values run on CPU tensors; on others
only with MCR_FAST_CHECK=1.
"""

from mcr_fast._checks.inputs import (
    declared_latents,
    embedding_rows,
    fusion_output,
    linear_latents,
    reconstruction_target,
    row_logits,
    stacked_contributions,
)
from mcr_fast._checks.options import (
    Backend,
    CleanPath,
    Divergence,
    Exclude,
    Strategy,
    Subsets,
    choice,
    divergence_options,
    enough_classes,
    finite,
    known_backend,
    latent_dims,
    positive,
    subset_masks,
    whole,
)
from mcr_fast._checks.pairs import divergence_arguments, kernel_reads
from mcr_fast._checks.permutations import donors
from mcr_fast._checks.randomness import moved, random_state, same_logits
from mcr_fast._checks.rows import (
    check_labels,
    check_present,
    check_weight,
    class_labels,
    exclusion_codes,
    label_codes,
    row_index,
)
from mcr_fast._checks.tensors import (
    float_tensor,
    may_read,
    modalities,
    no_infinite_logits,
    on_device,
    plain_tensor,
    same_form,
    shaped,
)

__all__ = [
    "Backend",
    "CleanPath",
    "Divergence",
    "Exclude",
    "Strategy",
    "Subsets",
    "check_labels",
    "check_present",
    "check_weight",
    "choice",
    "class_labels",
    "declared_latents",
    "divergence_arguments",
    "divergence_options",
    "donors",
    "embedding_rows",
    "enough_classes",
    "exclusion_codes",
    "finite",
    "float_tensor",
    "fusion_output",
    "kernel_reads",
    "known_backend",
    "label_codes",
    "latent_dims",
    "linear_latents",
    "may_read",
    "modalities",
    "moved",
    "no_infinite_logits",
    "on_device",
    "plain_tensor",
    "positive",
    "random_state",
    "reconstruction_target",
    "row_index",
    "row_logits",
    "same_form",
    "same_logits",
    "shaped",
    "stacked_contributions",
    "subset_masks",
    "whole",
]
