"""The unimodal losses of Algorithm 1: the task loss of a head on each modality's own latents."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mcr_fast._task import TaskLoss
from mcr_fast._terms import average_over_middle

Head = Callable[[Tensor], Tensor]

NO_HEADS = (
    "MCRObjective: no unimodal_heads were given, so the unimodal losses of Algorithm 1 are left "
    "out, and without them a modality that is learned slowly can end up ignored. Pass a linear "
    "head a modality, or set unimodal_weight=0 to say that none is wanted. This warning comes once."
)


def checked_heads(heads: Any, num_modalities: int) -> list[Head | None]:
    """One a modality."""
    if not isinstance(heads, Iterable) or isinstance(heads, Mapping):
        raise TypeError(
            f"unimodal_heads must be a list of {num_modalities} modules or callables, one a "
            f"modality, got {type(heads).__name__}"
        )
    heads = list(heads)
    if len(heads) != num_modalities:
        raise ValueError(
            f"unimodal_heads must hold {num_modalities} heads, one a modality, got {len(heads)}"
        )
    for m, head in enumerate(heads):
        if head is not None and not callable(head):
            raise TypeError(f"unimodal_heads[{m}] must be callable, got {type(head).__name__}")
    return heads


def unimodal_losses(
    task_loss: TaskLoss,
    num_classes: int,
    latents: Sequence[Tensor],  # M tensors [N, ..., D_m]
    labels: Any,
    heads: Sequence[Head | None],  # None: its loss is 0
    task: Tensor,  # [], of the dtype that is wanted
    *,
    present: Tensor | None,
    sample_weight: Tensor | None,
) -> tuple[list[Tensor], tuple[Tensor | None, ...]]:  # M of [], M of [N, C]
    """The losses of the heads, and their logits."""
    losses: list[Tensor] = []
    outputs: list[Tensor | None] = []
    wanted = (latents[0].shape[0], num_classes)
    for m, (head, z) in enumerate(zip(heads, latents, strict=True)):
        loss, logits = task.new_zeros(()), None
        if head is not None:
            z, weight = average_over_middle(z), sample_weight
            if present is not None:
                here = present[:, m]
                # what is in missing rows may be NaN, which a weight of 0 does not stop
                z = torch.where(here[:, None], z, z.new_zeros(()))
                weight = here.to(task.dtype) if weight is None else weight * here
            logits = head(z)
            if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
                got = getattr(logits, "shape", type(logits).__name__)
                raise ValueError(
                    f"unimodal_heads[{m}] must return logits [N, C] = {list(wanted)}, got {got}"
                )
            loss = task_loss(logits, labels, weight).to(task.dtype)
        losses.append(loss)
        outputs.append(logits)
    return losses, tuple(outputs)
