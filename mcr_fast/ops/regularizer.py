"""All terms of `MCRLoss` with a linear fusion as one node of the graph, from latents to the loss.

At the size that people train at, the calls between the terms cost more than the terms: joining the
latents, the logits, the sums and their backwards. Here one op a direction does all of it, with the
compiled kernels and with Triton's, in eager mode and in what torch.compile makes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mcr_fast import _libraries as libraries
from mcr_fast.ops._autograd import FIRST
from mcr_fast.ops._backend import can_take, resolve
from mcr_fast.ops._dispatch import call, find, register
from mcr_fast.ops._limits import Call
from mcr_fast.ops._linear_layer import call_of, layer_gradients, takes
from mcr_fast.ops._listen import Heard
from mcr_fast.ops._modes import (
    autocast_enabled,
    exporting,
    holds_values,
    recorded,
    refuse_batched,
    transformed,
)
from mcr_fast.pairing import weights_in_range
from mcr_fast.reference._similarity import accumulation_dtype

_SERVED, _SERVED_ON_CUDA = (libraries.has_kernel("regularizer_fwd", key) for key in ("CPU", "CUDA"))
_FORWARD = find("regularizer_fwd", "cpu") if _SERVED else None
_OUTPUTS = 6  # before the unit gradients


class Terms(NamedTuple):
    """What the op gives: the first four with a gradient."""

    loss: Tensor  # []
    mipd: Tensor  # []
    contrastive: Tensor  # []
    logits: Tensor  # [N, C]
    divergences: Tensor  # [S]
    importance: Tensor  # [M]


def _forward_fake(latents: list[Tensor], weight: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    subsets, want_grad = arguments[6], arguments[-1]
    dtype = accumulation_dtype(weight.dtype)
    num_modalities, (rows, width), classes = len(latents), latents[0].shape, weight.shape[0]
    shapes = (
        *((), (), (), (rows, classes), (len(subsets),), (num_modalities,)),
        (num_modalities, rows, classes) if want_grad else (0, 0, 0),
        (classes,) if want_grad else (0,),
        (num_modalities * rows, width) if want_grad else (0, 0),
    )
    return tuple(weight.new_empty(shape, dtype=dtype) for shape in shapes)


def _backward_fake(*arguments: Any) -> tuple[list[Tensor], Tensor, Tensor]:
    wanted, latents, weight = arguments[-3:]
    *grads, grad_weight = (
        x.new_empty(x.shape if want else (0, 0))
        for x, want in zip((*latents, weight), wanted, strict=True)
    )
    return grads, grad_weight, weight.new_empty(weight.shape[0])


def _triton_backward_fake(*arguments: Any) -> tuple[list[Tensor], Tensor, Tensor]:
    """One product makes the gradients of all latents, if all are wanted: one tensor [M, N, D]."""
    grads, grad_weight, grad_bias = _backward_fake(*arguments)
    if all(arguments[-3][:-1]):
        grads = [grads[0].new_empty(len(grads), *grads[0].shape)]
    return grads, grad_weight, grad_bias


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    latents, weight, _, *arguments = inputs
    ctx.weights = arguments[-3:-1]  # of MIPD, of the contrastive loss
    ctx.listeners = ()
    ctx.save_for_backward(*output[_OUTPUTS:], weight, *latents)


def _backward(
    ctx: Any,
    run: Callable[..., tuple[list[Tensor], Tensor, Tensor]],
    *grads: Tensor | None,
) -> tuple[Tensor | None, ...]:
    *of_terms, to_logits = grads[:4]
    refuse_batched("MCRLoss", *of_terms, to_logits)
    unit_grad, unit_grad_bias, unit_grad_rows, weight, *latents = ctx.saved_tensors
    if ctx.listeners:
        parts = (to_logits, unit_grad, unit_grad_rows, tuple(ctx.weights), weight)
        heard = Heard(tuple(of_terms), *parts, tuple(z.shape[1] for z in latents))
        for listener in ctx.listeners:
            listener(heard)
    wanted = ctx.needs_input_grad[FIRST:-1]  # of the latents, of the weight
    # the logits are the task's: what is done with their gradient is nobody else's business
    to_task = to_logits if torch.is_grad_enabled() else None
    made: tuple[Tensor | None, ...] = (None,) * (len(latents) + 2)
    if to_task is None or any(grad is not None for grad in of_terms):
        to_logits = to_logits if to_task is None else None
        units = (unit_grad, unit_grad_bias, unit_grad_rows)
        rest = (*units, *ctx.weights, wanted, latents, weight)
        grad_latents, grad_weight, grad_bias = run(*of_terms, to_logits, *rest)
        if grad_latents[0].dim() == 3:  # of all latents, as Triton's kernels give them
            grad_latents = list(grad_latents[0].unbind())
        made = (*grad_latents, grad_weight, grad_bias)
    if to_task is None:
        return made
    each = to_task.expand(len(latents), *to_task.shape)
    through = (*layer_gradients(each, wanted, latents, weight), to_task.sum(0))
    pairs = zip(made, through, strict=True)
    return tuple(b if a is None else a if b is None else a + b for a, b in pairs)


register(
    "regularizer",
    differentiable=3,
    attached=4,
    forward_fake=_forward_fake,
    backward_fake=_backward_fake,
    triton_backward_fake=_triton_backward_fake,
    setup=_setup,
    backward=_backward,
)


def serves(
    latents: Sequence[Tensor],
    weight: Tensor,
    pairs: tuple[Any, ...],  # of permuted_divergence_fwd, from the order to `exclude`
    contrastive: str,
    backend: str | None,
) -> str | None:
    """The backend whose `regularizer` may be called, None if there is none."""
    in_graph = torch.compiler.is_compiling() and not exporting()
    if transformed() or not in_graph and (recorded() or forward_ad._current_level >= 0):
        return None
    if _SERVED and weight.is_cpu and takes(latents, weight, pairs, backend):
        values = in_graph or all(holds_values(x) for x in (weight, *latents))
        return "cpu" if values else None
    device, (rows, width) = weight.device, latents[0].shape
    if any(x.dtype != torch.float32 or x.device != device for x in (weight, *latents)):
        return None
    if autocast_enabled(device) or (backend is None and device.type != "cuda"):
        return None
    given = call_of(latents, weight, pairs)
    chosen = resolve("permuted_divergence", backend, device, call=given)
    served = {"triton": True, "cuda": _SERVED_ON_CUDA}
    of_rows = Call(len(latents) * rows, width)
    if backend is not None:  # raises where it does not take them
        resolve(contrastive, backend, device, call=of_rows)
    # that of the divergences, which have the most to do
    return chosen if served.get(chosen) and can_take(contrastive, chosen, of_rows) else None


def regularizer(
    latents: list[Tensor],  # M tensors [N, D]
    weight: Tensor,  # [C, M * D]
    bias: Tensor | None,  # [C]
    pairs: tuple[Any, ...],  # of permuted_divergence_fwd, from the order to `exclude`
    *others: Any,  # classes, contrastive, temperature, mipd_weight, contrastive_weight
    backend: str,
) -> Terms:
    """The terms; `backend` is what `serves` gives."""
    if pairs[4] is not None:
        pairs = (*pairs[:4], weights_in_range(pairs[4]), *pairs[5:])
    want = torch.is_grad_enabled() and (
        weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or any(z.requires_grad for z in latents)
    )
    target = _FORWARD if backend == "cpu" else find("regularizer_fwd", backend)
    made = call(target, latents, weight, bias, *pairs, *others, want, graph=want)
    return Terms(*made[:_OUTPUTS])
