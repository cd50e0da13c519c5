"""Argument checks at the public edge: they raise before any work and name what was wanted.

Nothing here waits for a device. Checks that read a tensor's values run on CPU tensors; on others
only with MCR_FAST_CHECK=1.
"""

from mcr_fast._checks.batch import batch, given_donors
from mcr_fast._checks.inputs import (
    contrastive_arguments,
    fusion_output,
    linear_latents,
    reconstruction_target,
    row_logits,
    stacked_contributions,
)
from mcr_fast._checks.options import (
    divergence_options,
    enough_classes,
    known_backend,
    latent_dims,
    subset_bits,
)
from mcr_fast._checks.pairs import divergence_arguments, kernel_reads
from mcr_fast._checks.permutations import donors
from mcr_fast._checks.randomness import moved, random_state, same_logits
from mcr_fast._checks.ranks import ranks
from mcr_fast._checks.rows import (
    check_labels,
    check_present,
    check_weight,
    class_labels,
    exclusion_codes,
    label_codes,
    row_index,
)
from mcr_fast._checks.task import IGNORED_LABEL, all_labelled, task_labels
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
from mcr_fast._names import Backend, CleanPath, Divergence, Exclude, Strategy, Subsets, choice
from mcr_fast._numbers import finite, positive, whole
