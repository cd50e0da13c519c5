"""Checks of what a launcher is called with: kernels trust the shapes, dtypes and devices.

The public edge has made them already, in better words; these are for direct calls of the ops.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
CODES = (torch.int64,)
MARKS = (torch.bool,)
MAX_MODALITIES = 8


def check(
    name: str,
    x: Tensor | None,
    like: Tensor,
    dtypes: tuple[torch.dtype, ...],
    *shape: int | None,
) -> None:
    """A tensor of one of the dtypes beside `like`, of this shape; a size of None is any.

    Raises:
        ValueError: for another one. None is no tensor and passes.
    """
    if x is None:
        return
    fits = len(shape) == x.ndim and all(
        size is None or size == given for size, given in zip(shape, x.shape, strict=True)
    )
    if not fits or x.dtype not in dtypes or x.device != like.device:
        wanted = [size if size is not None else "any" for size in shape]
        raise ValueError(
            f"{name} must be one of {dtypes} with shape {wanted} on {like.device}, "
            f"got {x.dtype} {list(x.shape)} on {x.device}"
        )


def choice(name: str, value: str, known: dict[str, int]) -> int:
    """The number of an option's value.

    Raises:
        ValueError: for a value that is not known.
    """
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    return known[value]


def check_pairs(
    contributions: Tensor,  # [M, N, C]
    bias: Tensor | None,  # [C]
    order: Tensor | None,  # [N]
    donors: Tensor | None,  # [1 or M, K] shifts with an order, [1 or M, K, N] rows without
    labels: Tensor | None,  # [N]
    present: Tensor | None,  # [N, M]
    sample_weight: Tensor | None,  # [N]
    subsets: list[int],
    exclude: str,
) -> None:
    """What permuted_divergence takes.

    Raises:
        ValueError: for a tensor that does not fit, or a subset that is none.
    """
    x = contributions
    check("contributions", x, x, FLOATS, None, None, None)
    num_modalities, num_rows, num_classes = x.shape
    check("bias", bias, x, (*FLOATS, torch.float64), num_classes)
    check("order", order, x, CODES, num_rows)
    if donors is not None:
        sets = 1 if donors.ndim and donors.shape[0] == 1 else num_modalities
        check("donors", donors, x, CODES, sets, None, *(() if order is not None else (num_rows,)))
    check("labels", labels, x, CODES, num_rows)
    check("present", present, x, MARKS, num_rows, num_modalities)
    check("sample_weight", sample_weight, x, (*FLOATS, torch.float64), num_rows)
    if exclude == "same_label" and labels is None:
        raise ValueError("labels must be given for exclude='same_label'")
    if not 1 <= num_modalities <= MAX_MODALITIES:
        raise ValueError(f"1 to {MAX_MODALITIES} modalities, got {num_modalities}")
    if not all(1 <= subset < 1 << num_modalities for subset in subsets):
        raise ValueError(f"subsets must be in 1..{(1 << num_modalities) - 1}, got {subsets}")


def check_rows(
    embeddings: Tensor,  # [L, D]
    labels: Tensor,  # [L], or [N] of L = M * N rows, modality by modality
    present: Tensor | None,  # [L], or [N, M]
    temperature: float,
) -> None:
    """What the contrastive losses take.

    Raises:
        ValueError: for a tensor or a temperature that does not fit.
    """
    check("embeddings", embeddings, embeddings, FLOATS, None, None)
    rows, of_one = len(embeddings), labels.shape[0] if labels.ndim else 0
    modalities = rows // max(of_one, 1)
    check("labels", labels, embeddings, CODES, of_one if modalities * of_one == rows else rows)
    in_columns = present is not None and present.ndim == 2
    columns = modalities if rows else None
    check("present", present, embeddings, MARKS, *((of_one, columns) if in_columns else (rows,)))
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")


def check_parts(
    latents: list[Tensor],  # M of [N, D_m]
    reconstruction: Tensor,  # [N, sum of D_m]
) -> None:
    """What reconstruction_loss takes.

    Raises:
        ValueError: for tensors that do not fit together.
    """
    check("reconstruction", reconstruction, reconstruction, FLOATS, None, None)
    for z in latents:
        check("latents", z, reconstruction, FLOATS, len(reconstruction), None)
    width = sum(z.shape[1] for z in latents)
    check("reconstruction", reconstruction, reconstruction, FLOATS, len(reconstruction), width)
