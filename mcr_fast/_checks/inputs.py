"""Checks of what the losses are computed from: contributions, latents, logits, embeddings."""

from typing import Any

import torch
from torch import Tensor

from mcr_fast._checks.options import known_backend
from mcr_fast._checks.rows import check_present, label_codes
from mcr_fast._checks.tensors import (
    FLOAT_DTYPES,
    float_tensor,
    modalities,
    on_device,
    same_form,
    shaped,
)
from mcr_fast._numbers import positive
from mcr_fast.ops._modes import autocast_enabled


def stacked_contributions(contributions: Any) -> Tensor:  # [M, N, C]
    """[M, N, C], or M tensors [N, C] that are then stacked."""
    if not isinstance(contributions, Tensor):
        same_form("contributions", modalities("contributions", contributions), "[N, C]")
        contributions = torch.stack(tuple(contributions))
    x = float_tensor("contributions", contributions)
    if x.ndim != 3:
        raise ValueError(f"contributions must have shape [M, N, C], got {list(x.shape)}")
    if x.shape[0] < 2:
        raise ValueError(f"contributions must hold at least 2 modalities, got {x.shape[0]}")
    if x.shape[2] < 1:
        raise ValueError(f"contributions must have at least 1 class, got shape {list(x.shape)}")
    return x


def linear_latents(latents: Any, weight: Any) -> list[Tensor]:  # M tensors [N, D_m]
    """Latents whose widths add up to a linear layer's, of its dtype and device."""
    parts = modalities("latents", latents)
    float_tensor("weight", weight)
    width = sum(z.shape[-1] for z in parts)
    if weight.ndim != 2 or weight.shape[1] != width or weight.shape[0] < 1:
        raise ValueError(
            f"weight must have shape [C, {width}] for latents of {width} elements together, "
            f"got {list(weight.shape)}"
        )
    on_device("weight", weight, parts[0].device, "latents[0]")
    for m, z in enumerate(parts):
        if z.ndim != 2:
            raise ValueError(f"latents[{m}] must have shape [N, D_m], got {list(z.shape)}")
        if z.dtype != weight.dtype and not autocast_enabled(z.device):
            raise TypeError(
                f"latents[{m}] must be {weight.dtype} like weight, got {z.dtype}; convert one of "
                "them, as with .float()"
            )
    return parts


def declared_latents(latents: Any, widths: tuple[int, ...]) -> list[Tensor]:
    """M tensors [N, ..., D_m] with the widths a module was made for."""
    parts = modalities("latents", latents)
    if len(parts) != len(widths):
        raise ValueError(
            f"latents must hold {len(widths)} modalities as latent_dims {list(widths)} says, "
            f"got {len(parts)}"
        )
    for m, (z, width) in enumerate(zip(parts, widths, strict=True)):
        if z.shape[-1] != width:
            raise ValueError(
                f"latents[{m}] must end in {width} as latent_dims {list(widths)} says, "
                f"got {list(z.shape)}"
            )
    return parts


def row_logits(perturbed: Any, clean: Any) -> None:
    """[R, C] and [N, C] logits of one device."""
    for name, x in (("perturbed", perturbed), ("clean", clean)):
        float_tensor(name, x)
        if x.ndim != 2:
            raise ValueError(f"{name} must have shape [rows, C], got {list(x.shape)}")
    if perturbed.shape[1] != clean.shape[1]:
        raise ValueError(
            f"perturbed must have C = {clean.shape[1]} columns like clean, got {perturbed.shape[1]}"
        )
    if clean.shape[1] < 1:
        raise ValueError(f"clean must have at least 1 class, got shape {list(clean.shape)}")
    on_device("perturbed", perturbed, clean.device, "clean")


def fusion_output(logits: Any, num_rows: int, num_classes: int) -> None:
    """Logits for every row."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"fusion must return a tensor of logits, got {type(logits).__name__}")
    if logits.dtype not in FLOAT_DTYPES or logits.layout is not torch.strided:
        raise TypeError(
            f"fusion must return dense float logits, got {logits.dtype} with layout {logits.layout}"
        )
    if tuple(logits.shape) != (num_rows, num_classes):
        raise ValueError(
            f"fusion must return logits [rows, C] = {[num_rows, num_classes]}, "
            f"got {list(logits.shape)}"
        )


def embedding_rows(
    embeddings: Any,  # M tensors [N, D], or one [L, D]
    labels: Any,  # [N], or [L] for one tensor
    present: Any,  # [N, M] bool, or [L] for one tensor
    name: str = "embeddings",
) -> tuple[Tensor, Tensor, Tensor | None]:  # [L, D], [L] or [N] int64, [L] or [N, M] bool
    """What the contrastive ops take, of their public arguments; modality by modality.

    Codes [N] and presence [N, M] are those of M modalities.
    """
    if isinstance(embeddings, Tensor):
        x = float_tensor(name, embeddings)
        if x.ndim != 2:
            raise ValueError(f"{name} must be M tensors [N, D] or one [L, D], got {list(x.shape)}")
        if labels is None:
            raise ValueError(
                f"labels must be given for one tensor of {name}, got None: which rows belong to "
                "one instance is known only for a list of modalities"
            )
        codes = label_codes(labels, x.shape[0], x.device)
        check_present(present, (x.shape[0],), "[L]", x.device)
        return x, codes, present
    parts = modalities(name, embeddings)
    same_form(name, parts, "[N, D]")
    num_rows, device = parts[0].shape[0], parts[0].device
    if labels is None:
        codes = torch.arange(num_rows, device=device)
    else:
        # NaN equals no label, that of its own row in another modality neither
        own = isinstance(labels, Tensor) and labels.dtype.is_floating_point
        codes = label_codes(labels, num_rows, device, repeat=len(parts) if own else 1)
    check_present(present, (num_rows, len(parts)), "[N, M]", device)
    if present is not None and codes.shape[0] != num_rows:
        present = present.T.reshape(-1)
    return torch.cat(parts), codes, present


def contrastive_arguments(
    embeddings: Any,
    labels: Any,
    temperature: Any,
    present: Any,
    backend: Any,
    name: str,
) -> tuple[float, tuple[Tensor, Tensor, Tensor | None]]:
    """The temperature of a contrastive loss, and its rows as `embedding_rows` gives them."""
    temperature = positive("temperature", temperature)
    known_backend(backend)
    return temperature, embedding_rows(embeddings, labels, present, name)


def reconstruction_target(latents: Any, reconstruction: Any) -> None:
    """M latents [N, D_m] and what to compare them with, [N, sum of D_m]."""
    parts = modalities("latents", latents)
    for m, x in enumerate(parts):
        if x.ndim != 2:
            raise ValueError(f"latents[{m}] must have shape [N, D], got {list(x.shape)}")
    float_tensor("reconstruction", reconstruction)
    width = sum(x.shape[1] for x in parts)
    shaped("reconstruction", reconstruction, (parts[0].shape[0], width), "[N, sum of D_m]")
    on_device("reconstruction", reconstruction, parts[0].device, "latents")
