"""What the monitor sees of a step beside its output: names, labels, and the arguments of a call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mcr_fast import _checks as checks
from mcr_fast.monitor._gradients import Apart


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


def trains(like: Tensor) -> bool:
    """Whether this is a step's forward with values of its own: no checkpoint repeats it, no graph
    captures it, nothing transforms or traces it.
    """
    if torch._C._current_graph_task_id() != -1 or type(like) is not Tensor:
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(like):
        return False
    return not (like.is_cuda and torch.cuda.is_current_stream_capturing())


def write_hits(
    row: tuple[Tensor, ...],
    logits: Tensor,  # [N, C]
    labels: Tensor,  # [N] or [N, C]
    unimodal_logits: Sequence[Tensor | None] | None,
    present: Tensor | None,  # [N, M]
) -> None:
    """Fill a row: rows that count for the fusion and for each modality; those that were right."""
    num_modalities = len(row[0]) - 1
    heads = list(unimodal_logits or [None] * num_modalities)
    if len(heads) != num_modalities:
        raise ValueError(f"unimodal_logits must hold {num_modalities} tensors, got {len(heads)}")
    there = [m for m, x in enumerate(heads) if x is not None]
    every = [logits, *(x for x in heads if x is not None)]
    if any(x.shape != logits.shape for x in every):
        shapes = [list(x.shape) for x in every[1:]]
        raise ValueError(f"unimodal_logits must have the shape {list(logits.shape)}, got {shapes}")
    found, counts = _found(torch.stack(every), labels)
    if present is not None and there:
        here = torch.stack([torch.ones_like(present[:, 0]), *(present[:, m] for m in there)])
        found, counts = found * here, here if counts is None else counts * here
    whole = len(there) == num_modalities
    places = row if whole else [part[: 1 + len(there)] for part in row]
    if counts is None:
        places[0].fill_(len(logits))
    else:
        places[0].copy_(counts.sum(-1))
    places[1].copy_(found.sum(-1))
    if not whole:
        _spread(row, there)


def _spread(row: tuple[Tensor, ...], there: Sequence[int]) -> None:
    """Move what was written in front to the modalities that have a head; 0 to the others."""
    for part in row:
        written = part[1 : 1 + len(there)].clone()
        part[1:].zero_()
        for m, value in zip(there, written.unbind(), strict=True):
            part[1 + m].copy_(value)


def _found(every: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:  # [1 + M, N], [N]
    """How much of each row's label was found, and whether the row counts; None: all do."""
    if labels.is_floating_point():
        raise TypeError(
            f"labels must be integers or booleans, got {labels.dtype}: for several labels at once "
            "pass labels.bool(), for regression leave labels out"
        )
    if labels.shape == every.shape[1:2]:
        return every.argmax(-1).eq(labels), labels.ge(0)
    if labels.shape == every.shape[1:]:
        return every.gt(0).eq(labels.ne(0)).float().mean(-1), None
    rows, classes = every.shape[1:]
    wanted = f"[{rows}] or [{rows}, {classes}]"
    raise ValueError(f"labels must have shape {wanted}, got {list(labels.shape)}")


def facts_of_call(module: nn.Module, args: Any, kwargs: Any, out: Any) -> dict[str, Any]:
    """What `MCRMonitor.update` takes of a call of an `MCRLoss` or an `MCRObjective`."""
    latents = kwargs["latents"] if "latents" in kwargs else args[0]
    labels = kwargs["labels"] if "labels" in kwargs else args[1]
    present, objective = kwargs.get("present"), getattr(module, "task_loss", None)
    loss: Any = module
    compared = labels
    if objective is not None:
        compared = loss._compared(labels, kwargs.get("contrastive_labels"))
        loss = loss.loss
    alone = present is None and getattr(loss, "process_group", None) is None
    candidates = len(out.logits) if compared is None and alone else None
    labels = _of_accuracies(labels, getattr(objective, "task", None), out.logits)
    return {"latents": latents, "labels": labels, "present": present, "candidates": candidates}


def _of_accuracies(labels: Any, task: Any, logits: Tensor) -> Tensor | None:
    """The labels of a call if it is known that they are what the logits have to find."""
    if not isinstance(labels, Tensor) or labels.shape not in (logits.shape[:1], logits.shape):
        return None
    if callable(task) or task == "regression":  # what a callable makes of them is its own business
        return None
    if labels.is_floating_point():
        return labels.gt(0.5) if task == "multilabel" else None
    return labels


def contrasted_latents(loss: Any, args: Any, kwargs: Any) -> list[Tensor] | None:
    """The latents of a call whose L_Con is over ranks and has nothing but them; None: another."""
    latents = kwargs["latents"] if "latents" in kwargs else args[0] if args else None
    embeddings = kwargs.get("embeddings")
    if isinstance(embeddings, Apart):  # from another monitor, which hears through this one's
        latents, embeddings = embeddings, None
    if not loss._over_ranks or embeddings is not None:
        return None
    if not isinstance(latents, list | tuple) or not all(isinstance(z, Tensor) for z in latents):
        return None  # which the loss refuses
    apart = all(z.requires_grad and z.ndim == 2 for z in latents)
    return list(latents) if apart and len(latents) else None


def group_of(process_group: Any) -> Any:
    """The group that is meant; None: this process alone."""
    if process_group != "world":
        return process_group
    distributed = torch.distributed
    started = distributed.is_available() and distributed.is_initialized()
    return distributed.group.WORLD if started and distributed.get_world_size() > 1 else None


def same_device(group: Any, device: torch.device) -> torch.device:
    """Where a collective of a group takes its tensors: ranks without a batch must join in."""
    if "nccl" in torch.distributed.get_backend(group):
        return torch.device("cuda", torch.cuda.current_device())
    return device
