"""Checks of what `MCRLoss` is called with."""

from typing import Any

from torch import Tensor

from mcr_fast._checks.inputs import declared_latents
from mcr_fast._checks.permutations import donors
from mcr_fast._checks.rows import (
    check_labels,
    check_present,
    check_weight,
    class_labels,
    label_codes,
)
from mcr_fast._checks.tensors import (
    float_tensor,
    modalities,
    on_device,
    plain_tensor,
    same_form,
    shaped,
)


def batch(
    given: tuple[Any, ...],  # latents, fusion, logits, embeddings, labels, present, sample_weight
    latent_dims: tuple[int, ...],
    num_classes: int,
    *,
    contrasts: bool,  # L_Con is wanted
    same_label: bool,  # rows of equal label are not paired
    ceb_labels: bool,  # L_CEB sees class labels
) -> tuple[list[Tensor], Tensor | None]:  # M tensors [N, ..., D_m]; [N] int64
    """The latents and the labels' codes, if pairs depend on them, of a batch that fits."""
    latents, fusion, logits, embeddings, labels, present, sample_weight = given
    parts = declared_latents(latents, latent_dims)
    num_rows, device = parts[0].shape[0], parts[0].device
    if not callable(fusion):
        raise TypeError(f"fusion must be callable, got {type(fusion).__name__}")
    if logits is not None:
        float_tensor("logits", logits)
        shaped("logits", logits, (num_rows, num_classes), "[N, C]")
        on_device("logits", logits, device, "latents")
    if contrasts:
        _contrasted(embeddings, latent_dims)
    if labels is None and (same_label or ceb_labels):
        needed_by = "ceb_source='labels'" if ceb_labels else "exclude='same_label'"
        raise ValueError(f"labels must be given for {needed_by}, got None")
    if same_label or (labels is not None and (contrasts or ceb_labels)):
        check_labels(labels, num_rows, device)
    elif labels is not None and plain_tensor("labels", labels).shape[0] != num_rows:
        # of any form, as for several labels a row: nothing compares them
        raise ValueError(f"labels must have {num_rows} rows, got shape {list(labels.shape)}")
    if ceb_labels:
        class_labels(labels, num_classes)
    check_present(present, (num_rows, len(parts)), "[N, M]", device)
    check_weight("sample_weight", sample_weight, num_rows, "[N]", device)
    return parts, label_codes(labels, num_rows, device) if same_label else None


def _contrasted(embeddings: Any, latent_dims: tuple[int, ...]) -> None:
    """Embeddings of one width, or latents that are."""
    if embeddings is not None:
        same_form("embeddings", modalities("embeddings", embeddings), "[N, D]")
    elif len(set(latent_dims)) > 1:
        raise ValueError(
            "embeddings must be given for the contrastive term when modalities differ in "
            f"width, got latent_dims {list(latent_dims)}; project the latents to one "
            "width, or set contrastive_weight=0"
        )


def given_donors(
    permutations: Any, perturbation: str, latents: list[Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """(order, donors) of permutations that were given."""
    if perturbation != "permute":
        raise ValueError(
            f"permutations must be None for perturbation={perturbation!r}, "
            f"got {type(permutations).__name__}"
        )
    return donors(permutations, len(latents), latents[0].shape[0], latents[0].device)
