"""Cross entropies of the fused logits and of linear heads, and the objective's sum, as one node.

A step that is not large spends more time on the calls of its task losses than on their arithmetic:
three products, log-softmaxes, means and sums and their backwards. Here one op a direction does all
of it, on a CPU in float32.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from mcr_fast import _libraries as libraries
from mcr_fast.ops._autograd import FIRST
from mcr_fast.ops._dispatch import call, find, register
from mcr_fast.ops._modes import any_batched, recorded

_SERVED = libraries.has_kernel("task_losses_fwd", "CPU")
_FORWARD = find("task_losses_fwd", "cpu") if _SERVED else None
# Logits of all losses: the op's loops are plain, and beyond this torch's vectors win.
_MOST_LOGITS = 1 << 14
_PLAIN = (Tensor, nn.Parameter)


class TaskLosses(NamedTuple):
    """What the op gives, all of it with a gradient."""

    loss: Tensor  # [] task + sum of unimodal_weight * unimodal + regularizer_weight * regularizer
    task: Tensor  # []
    unimodal: Tensor  # [M]
    unimodal_logits: Tensor  # [M, N, C]


def _forward_fake(
    logits: Tensor, regularizer: Tensor, parts: list[Tensor], labels: Tensor, *weights: Any
) -> tuple[Tensor, ...]:
    heads, shape = len(weights[0]), tuple(logits.shape)
    shapes = ((), (), (heads,), (heads, *shape), (heads + 1, *shape))
    return tuple(logits.new_empty(each) for each in shapes)


def _backward_fake(*arguments: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    unit_grad, parts, *_, wanted = arguments[4:]
    grads = [
        x.new_empty(x.shape if want else (0,) * x.ndim)
        for x, want in zip(parts, wanted, strict=True)
    ]
    return unit_grad.new_empty(unit_grad.shape[1:]), unit_grad.new_empty(()), grads


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, _, parts, labels, *weights = inputs
    ctx.weights = weights
    # for `_backward_of_torch` alone, so that the logits may else be changed in place
    ctx.logits, ctx.version = logits, logits._version
    ctx.save_for_backward(output[-1], labels, *parts)


def _backward(
    ctx: Any,
    run: Callable[..., tuple[Tensor, Tensor, list[Tensor]]],
    *grads: Tensor | None,
) -> tuple[Tensor | None, ...]:
    grads = grads[:4]  # the unit gradient has none
    unit_grad, labels, *parts = ctx.saved_tensors
    if torch.is_grad_enabled() or any_batched(*grads):
        return _backward_of_torch(ctx, labels, parts, *grads)
    wanted = ctx.needs_input_grad[FIRST + 2 : FIRST + 2 + len(parts)]
    to_logits, to_regularizer, to_parts = run(*grads, unit_grad, parts, *ctx.weights, wanted)
    to_loss, to_task, *to_heads = grads
    # what nothing was done with gets no gradient, rather than zeros
    if to_loss is not None:
        return to_logits, to_regularizer, *to_parts
    of_heads = to_parts if any(g is not None for g in to_heads) else [None] * len(parts)
    return None if to_task is None else to_logits, None, *of_heads


def _backward_of_torch(
    ctx: Any,
    labels: Tensor,
    parts: list[Tensor],
    to_loss: Tensor | None,
    to_task: Tensor | None,
    to_unimodal: Tensor | None,
    to_unimodal_logits: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The same of torch's operations, which can be differentiated, and batched by vmap."""
    if ctx.logits._version != ctx.version:
        raise RuntimeError(
            "MCRObjective: the logits were modified in place, and derivatives of gradients, or "
            "batched gradients, need them as they were"
        )
    weights, of_regularizer = ctx.weights
    count = len(weights)
    latents, of_heads, biases = parts[:count], parts[count : 2 * count], parts[2 * count :]
    to_logits = _of_cross_entropy(ctx.logits, labels, _sum(to_loss, to_task))
    grads: tuple[list[Tensor | None], ...] = ([], [], [])
    for m, (z, w) in enumerate(zip(latents, of_heads, strict=True)):
        x = F.linear(z, w, biases[m] if biases else None)
        weighted = None if to_loss is None else to_loss * weights[m]
        own = None if to_unimodal is None else to_unimodal[m]
        added = None if to_unimodal_logits is None else to_unimodal_logits[m]
        g = _sum(_of_cross_entropy(x, labels, _sum(weighted, own)), added)
        made = (None, None, None) if g is None else (g @ w, g.mT @ z, g.sum(0))
        for each, grad in zip(grads, made, strict=True):
            each.append(grad)
    to_regularizer = None if to_loss is None else to_loss * of_regularizer
    return to_logits, to_regularizer, *grads[0], *grads[1], *(grads[2] if biases else ())


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _of_cross_entropy(logits: Tensor, labels: Tensor, grad: Tensor | None) -> Tensor | None:
    if grad is None:
        return None
    kept = (labels != -100)[:, None]
    one_hot = F.one_hot(labels.clamp(min=0), logits.shape[1])
    return grad * torch.where(kept, logits.softmax(1) - one_hot, 0.0) / kept.sum()


if _SERVED:
    register(
        "task_losses",
        differentiable=3,
        attached=4,
        forward_fake=_forward_fake,
        backward_fake=_backward_fake,
        setup=_setup,
        backward=_backward,
    )


def serves(
    logits: Tensor, regularizer: Tensor, parts: Sequence[Tensor], labels: Tensor, num_heads: int
) -> bool:
    """Whether `task_losses` may be called: where nothing records, on tensors that it takes."""
    if not _SERVED or not torch.is_grad_enabled() or recorded():
        return False
    if forward_ad._current_level >= 0 or torch._C._is_any_autocast_enabled():
        return False
    if logits.ndim != 2 or not 0 < logits.numel() * (1 + num_heads) <= _MOST_LOGITS:
        return False
    if labels.dtype != torch.int64 or labels.shape != logits.shape[:1] or not labels.is_cpu:
        return False
    rows, classes = logits.shape
    wanting = False
    for x in (logits, regularizer, *parts):
        plain = type(x) in _PLAIN and x.dtype == torch.float32 and x.is_cpu
        if not plain or x.layout is not torch.strided:
            return False
        wanting = wanting or x.requires_grad
    widths = [z.shape[1] if z.ndim == 2 else -1 for z in parts[:num_heads]]
    shapes: list[tuple[int, ...]] = [(rows, width) for width in widths]
    shapes += [(classes, width) for width in widths]
    if len(parts) == 3 * num_heads:
        shapes += [(classes,)] * num_heads
    return wanting and [tuple(x.shape) for x in parts] == shapes


def task_losses(
    logits: Tensor,  # [N, C]
    regularizer: Tensor,  # []
    parts: list[Tensor],  # M latents [N, D_m], M weights [C, D_m], and M biases [C] or none
    labels: Tensor,  # [N] int64, -100 for a row without one
    unimodal_weights: Sequence[float],  # M of them
    regularizer_weight: float,
) -> TaskLosses:
    """The losses."""
    weights = (list(unimodal_weights), regularizer_weight)
    made = call(_FORWARD, logits, regularizer, parts, labels, *weights, graph=True)
    return TaskLosses(*made[:4])
