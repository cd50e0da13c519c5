"""What the monitor sees of a step beside its output: names, labels, and the arguments of a call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mcr_fast import _checks as checks


def names_of(modalities: Any) -> tuple[str, ...]:
    """At least two different names, or those of so many modalities."""
    if isinstance(modalities, str):
        raise TypeError(f"modalities must be a list of names or their number, got {modalities!r}")
    if not isinstance(modalities, Sequence):
        count = checks.whole("modalities", modalities, 2, wanted="a list of names or their number")
        return tuple(f"modality_{m}" for m in range(count))
    names = tuple(modalities)
    if any(not isinstance(name, str) or not name for name in names):
        raise TypeError(f"modalities must be names, got {list(names)}")
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"modalities must be at least 2 different names, got {list(names)}")
    return names


def trains() -> bool:
    """Whether this is a step's forward: no checkpoint repeats it, no graph captures it."""
    if torch._C._current_graph_task_id() != -1:  # type: ignore[attr-defined]
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def count_hits(
    logits: Tensor,  # [N, C]
    labels: Tensor,  # [N] or [N, C]
    unimodal_logits: Sequence[Tensor] | None,
    present: Tensor | None,  # [N, M]
    num_modalities: int,
) -> Tensor:  # [2 (1 + M)]
    """Rows that count for the fusion and for each modality, and those whose label was found."""
    heads = [] if unimodal_logits is None else list(unimodal_logits)
    if len(heads) not in (0, num_modalities):
        raise ValueError(f"unimodal_logits must hold {num_modalities} tensors, got {len(heads)}")
    if any(x.shape != logits.shape for x in heads):
        shapes = [list(x.shape) for x in heads]
        raise ValueError(f"unimodal_logits must have the shape {list(logits.shape)}, got {shapes}")
    every = torch.stack([logits, *heads])  # [1 + M, N, C]
    found, counts = _found(every, labels)
    if present is not None and heads:
        of_heads = present.T.to(counts.dtype)
        counts = counts * torch.cat((torch.ones_like(of_heads[:1]), of_heads))
    hits = (found * counts).sum(-1)
    counts = counts.expand_as(found).sum(-1)
    missing = num_modalities - len(heads)
    if missing:
        none = hits.new_zeros(missing)
        return torch.cat((counts, none, hits, none))
    return torch.cat((counts, hits))


def _found(every: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # [1 + M, N], [N]
    """How much of each row's label was found, and whether the row counts."""
    if labels.is_floating_point():
        raise TypeError(
            f"labels must be integers or booleans, got {labels.dtype}: for several labels at once "
            "pass labels.bool(), for regression leave labels out"
        )
    if labels.shape == every.shape[1:2]:
        return every.argmax(-1).eq(labels).float(), labels.ge(0).float()
    if labels.shape == every.shape[1:]:
        right = every.gt(0).eq(labels.ne(0)).float().mean(-1)
        return right, torch.ones_like(right[0])
    rows, classes = every.shape[1:]
    wanted = f"[{rows}] or [{rows}, {classes}]"
    raise ValueError(f"labels must have shape {wanted}, got {list(labels.shape)}")


def facts_of_call(module: nn.Module, args: Any, kwargs: Any, out: Any) -> dict[str, Any]:
    """What `MCRMonitor.update` takes of a call of an `MCRLoss` or an `MCRObjective`."""
    latents = kwargs["latents"] if "latents" in kwargs else args[0]
    labels = kwargs["labels"] if "labels" in kwargs else args[1]
    present, loss = kwargs.get("present"), getattr(module, "loss", module)
    local = getattr(loss, "process_group", None) is None
    free = labels is None and present is None and local
    facts: dict[str, Any] = {"latents": latents, "present": present, "labels": labels}
    facts["candidates"] = len(out.logits) if free and loss.contrastive_weight != 0 else None
    if isinstance(labels, Tensor) and labels.is_floating_point():
        several = getattr(module, "task", None) == "multi_label"
        facts["labels"] = labels.bool() if several else None
    return facts


def same_device(group: Any, device: torch.device) -> torch.device:
    """Where a collective of a group takes its tensors: ranks without a batch must join in."""
    if "nccl" in torch.distributed.get_backend(group):
        return torch.device("cuda", torch.cuda.current_device())
    return device
