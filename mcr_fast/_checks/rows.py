"""Checks of what is known of each row: labels, presence, weight, the clean row it belongs to."""

from typing import Any

import torch
from torch import Tensor

from mcr_fast._checks.tensors import float_tensor, may_read, on_device, plain_tensor, shaped
from mcr_fast.pairing import NAN_CODES


def exclusion_codes(
    exclude: str | None, labels: Any, num_rows: int, device: torch.device
) -> Tensor | None:  # [N] int64
    """Label codes if `exclude` compares labels; unneeded labels are checked all the same."""
    if exclude == "same_label":
        if labels is None:
            raise ValueError("labels must be given for exclude='same_label', got None")
        return label_codes(labels, num_rows, device)
    if labels is not None:
        check_labels(labels, num_rows, device)
    return None


def label_codes(
    labels: Any,  # [N], int or float
    num_rows: int,
    device: torch.device,
    *,
    repeat: int = 1,
) -> Tensor:  # [repeat * N] int64
    """Codes that are equal exactly where the labels are: -0.0 is 0.0, NaN equals nothing."""
    check_labels(labels, num_rows, device)
    # repeat() takes five times as long
    labels = labels.expand(repeat, num_rows).reshape(-1) if repeat > 1 else labels
    if not labels.dtype.is_floating_point:
        return labels.to(torch.int64)
    values = labels.detach().to(torch.float64) + 0.0
    rows = torch.arange(values.shape[0], device=device)
    # the bit patterns from here on are NaNs: no number has them, and every row gets its own
    return torch.where(values.isnan(), NAN_CODES + rows, values.view(torch.int64))


def check_labels(labels: Any, num_rows: int, device: torch.device) -> None:
    """One real label a row."""
    plain_tensor("labels", labels)
    if labels.dtype.is_complex:
        raise TypeError(f"labels must be integers or floats, got {labels.dtype}")
    shaped("labels", labels, (num_rows,), "[N]")
    on_device("labels", labels, device, "the batch")


def class_labels(labels: Tensor, num_classes: int) -> None:
    """Class numbers in 0..C-1."""
    if labels.dtype.is_floating_point:
        raise TypeError(f"labels must be class numbers (integers) here, got {labels.dtype}")
    if may_read(labels) and ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(
            f"labels must be in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}"
        )


def check_present(present: Any, shape: tuple[int, ...], letters: str, device: torch.device) -> None:
    """Which rows of which modality exist; None: all."""
    if present is None:
        return
    plain_tensor("present", present)
    if present.dtype != torch.bool:
        raise TypeError(f"present must be torch.bool, got {present.dtype}")
    shaped("present", present, shape, letters)
    on_device("present", present, device, "the batch")


def check_weight(
    name: str,
    weight: Any,
    num_rows: int,
    letters: str,
    device: torch.device,
    *,
    read: bool = True,
) -> None:
    """Weights >= 0, one a row; None: all 1."""
    if weight is None:
        return
    float_tensor(name, weight)
    shaped(name, weight, (num_rows,), letters)
    on_device(name, weight, device, "the batch")
    if weight.requires_grad:
        raise ValueError(
            f"{name} must not require gradients, the losses have none for it; detach it"
        )
    if read and may_read(weight) and (weight < 0).any():
        raise ValueError(f"{name} must not be negative, got {float(weight.min())}")


def row_index(
    rows: Any, length: int, num_rows: int, device: torch.device, *, read: bool = True
) -> None:
    """One clean row in 0..N-1 for every perturbed row."""
    plain_tensor("rows", rows)
    if rows.dtype != torch.int64:
        raise TypeError(f"rows must be torch.int64, got {rows.dtype}")
    shaped("rows", rows, (length,), "[R]")
    on_device("rows", rows, device, "clean")
    if num_rows == 0 and length > 0:
        raise ValueError("rows must be in 0..N-1, but clean has no rows")
    if read and may_read(rows) and ((rows < 0) | (rows >= num_rows)).any():
        raise ValueError(
            f"rows must be in 0..N-1 = 0..{num_rows - 1}, got {int(rows.min())}..{int(rows.max())}"
        )
