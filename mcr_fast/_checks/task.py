"""Checks of the labels of a task."""

from typing import Any

import torch
from torch import Tensor

from mcr_fast._checks.tensors import may_read, on_device, plain_tensor

IGNORED_LABEL = -100  # the one that cross_entropy leaves out


def task_labels(
    task: str, labels: Any, num_rows: int, num_classes: int, device: torch.device
) -> bool:
    """Class numbers or probabilities, or a number for every output.

    Returns:
        Whether they are class numbers of which each was seen to be one.
    """
    plain_tensor("labels", labels)
    on_device("labels", labels, device, "the batch")
    one, all_outputs = (num_rows,), (num_rows, num_classes)
    shape, whole = tuple(labels.shape), not labels.dtype.is_floating_point
    wanted = f"[N, C] = {list(all_outputs)}"
    if task == "classification":
        wanted = f"[N] = {list(one)} class numbers or {wanted} probabilities"
        fits = shape == (one if whole else all_outputs)
    else:
        fits = shape == all_outputs or (num_classes == 1 and shape == one)
    if not fits or labels.dtype.is_complex:
        raise ValueError(
            f"labels must be {wanted} for task={task!r}, got {list(shape)} of {labels.dtype}"
        )
    return task == "classification" and whole and _class_numbers(labels, num_classes)


def _class_numbers(labels: Tensor, num_classes: int) -> bool:
    if not may_read(labels) or labels.numel() == 0:
        return False
    least, most = (int(x) for x in labels.aminmax())
    complete = least >= 0
    if not complete:
        least = int(labels.masked_fill(labels == IGNORED_LABEL, 0).min())
    if least < 0 or most >= num_classes:
        raise ValueError(
            f"labels must be in 0..{num_classes - 1}, or {IGNORED_LABEL} for a row without one, "
            f"got {least}..{most}"
        )
    return complete


def all_labelled(labels: Tensor) -> None:  # [N] int64
    """Raise for a row without a label, where L_CEB sees the labels."""
    if may_read(labels) and (labels == IGNORED_LABEL).any():
        raise ValueError(
            f"labels must hold no {IGNORED_LABEL} for ceb_source='labels' of the loss, which has "
            "no one-hot vector for a row without a label; take ceb_source='logits', or give "
            "contrastive_labels= of every row"
        )
