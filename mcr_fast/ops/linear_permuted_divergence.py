"""Permuted divergence of a linear fusion, straight from the latents, as one node of the graph.

The same as contributions followed by `permuted_divergence`. On a small batch the graph between the
two costs as much as the arithmetic: slices, transposes, a stack, and a zero-filled gradient of the
whole weight for each slice. Here one op a direction makes the products as well, each reading and
writing its columns in place. For the compiled kernels in eager mode;
under torch.compile the compiler does this work on the separate ops.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mcr_fast import _libraries as libraries
from mcr_fast.ops._autograd import FIRST
from mcr_fast.ops._backend import resolve
from mcr_fast.ops._dispatch import call, find, register
from mcr_fast.ops._linear_layer import layer_gradients, takes
from mcr_fast.ops._listen import Heard
from mcr_fast.ops._modes import (
    autocast_enabled,
    holds_values,
    recorded,
    refuse_batched,
)
from mcr_fast.ops.permuted_divergence import permuted_divergence
from mcr_fast.pairing import weights_in_range
from mcr_fast.reference._similarity import accumulation_dtype, without_autocast
from mcr_fast.reference.linear_permuted_divergence import (
    linear_contributions,
    linear_permuted_divergence_reference,
)

_SERVED = libraries.has_kernel("linear_permuted_divergence_fwd", "CPU")
_FORWARD = find("linear_permuted_divergence_fwd", "cpu") if _SERVED else None


def _forward_fake(
    latents: list[Tensor], weight: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    subsets, want_grad = arguments[6], arguments[11]
    dtype = accumulation_dtype(weight.dtype)
    shape = (len(latents), latents[0].shape[0], weight.shape[0])
    unit_shape = shape if want_grad else (0, 0, 0)
    return (
        weight.new_empty(len(subsets), dtype=dtype),
        weight.new_empty(unit_shape, dtype=dtype),
        weight.new_empty(unit_shape[2], dtype=dtype),
        weight.new_empty(shape),
    )


def _backward_fake(
    grad: Tensor | None,
    unit_grad: Tensor,
    unit_grad_bias: Tensor,
    contributions: Tensor,
    grad_contributions: Tensor | None,
    wanted: Sequence[int],
    latents: list[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    *arguments: Any,
) -> tuple[list[Tensor], Tensor, Tensor]:
    grads = [
        x.new_empty(x.shape if want else (0, 0))
        for x, want in zip((*latents, weight), wanted, strict=True)
    ]
    like, classes = weight if bias is None else bias, 0 if grad is None else weight.shape[0]
    return grads[:-1], grads[-1], unit_grad_bias.new_empty(classes, dtype=like.dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    latents, weight, bias, *ctx.arguments, _ = inputs
    ctx.mark_non_differentiable(*output[1:3])
    ctx.save_for_backward(*output[1:], weight, bias, *latents)
    ctx.listeners = ()


def _backward(
    ctx: Any,
    run: Callable[..., tuple[list[Tensor], Tensor, Tensor]],
    grad: Tensor | None,  # [S]
    _: None,
    __: None,
    grad_contributions: Tensor | None,  # [M, N, C]
) -> tuple[Tensor | None, ...]:
    refuse_batched("permuted_divergence", grad, grad_contributions)
    unit_grad, unit_grad_bias, contributions, weight, bias, *latents = ctx.saved_tensors
    if ctx.listeners:
        # every divergence has the same, minus that of L_MIPD
        of_mipd = None if grad is None else grad[0].neg()
        parts = (grad_contributions, unit_grad, None, (1.0, 1.0), weight)
        heard = Heard((None, of_mipd, None), *parts, tuple(z.shape[1] for z in latents))
        for listener in ctx.listeners:
            listener(heard)
    wanted = ctx.needs_input_grad[FIRST:-1]  # of the latents, of the weight
    to_task = grad_contributions if torch.is_grad_enabled() else None
    if grad is None and to_task is not None:
        return *layer_gradients(to_task, wanted, latents, weight), None
    grad_latents, grad_weight, grad_bias = run(
        grad,
        unit_grad,
        unit_grad_bias,
        contributions,
        grad_contributions if to_task is None else None,
        wanted,
        latents,
        weight,
        bias,
        *ctx.arguments,
    )
    grads = (*grad_latents, grad_weight, None if grad is None else grad_bias)
    if to_task is None:
        return grads
    through = (*layer_gradients(to_task, wanted, latents, weight), None)
    pairs = zip(grads, through, strict=True)
    return tuple(a if a is None or b is None else a + b for a, b in pairs)


register(
    "linear_permuted_divergence",
    differentiable=3,
    forward_fake=_forward_fake,
    backward_fake=_backward_fake,
    setup=_setup,
    backward=_backward,
)


def can_fuse(
    latents: Sequence[Tensor],  # M tensors [N, D_m]
    weight: Tensor,  # [C, sum of D_m]
    arguments: tuple[Any, ...],  # of permuted_divergence_fwd, from the order to `exclude`
    backend: str | None,
) -> bool:
    """Whether `fused_divergence` serves these tensors here."""
    if not _SERVED or recorded() or forward_ad._current_level >= 0:
        return False
    if not takes(latents, weight, arguments, backend):
        return False
    return all(holds_values(x) for x in (weight, *latents))


def fused_divergence(
    latents: Sequence[Tensor],  # M tensors [N, D_m]
    weight: Tensor,  # [C, sum of D_m]
    bias: Tensor | None,  # [C]
    *arguments: Any,  # of permuted_divergence_fwd, from the order to `exclude`
) -> tuple[Tensor, Tensor]:  # [S], [M, N, C]
    """The divergences and the contributions; only where `can_fuse`."""
    if arguments[4] is not None:
        arguments = (*arguments[:4], weights_in_range(arguments[4]), *arguments[5:])
    tensors = [weight, *latents] if bias is None else [weight, bias, *latents]
    want = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    made = call(_FORWARD, list(latents), weight, bias, *arguments, want, graph=want)
    return made[0], made[3]


def linear_permuted_divergence(
    latents: Sequence[Tensor],  # M tensors [N, D_m]
    weight: Tensor,  # [C, sum of D_m]
    bias: Tensor | None,  # [C]
    *pairs: Tensor | None,  # order, donors, labels, present, sample_weight
    backend: str | None,
    **options: Any,  # subsets, strategy, clean_path, divergence, exclude: in this order
) -> Tensor:  # [S]
    """`permuted_divergence` of the layer's contributions."""
    if weight.dtype.itemsize == 2 or autocast_enabled(weight.device):
        dtype = accumulation_dtype(weight.dtype, *(z.dtype for z in latents))
        latents, weight = [z.to(dtype) for z in latents], weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        with without_autocast(weight.device):
            return linear_permuted_divergence(
                latents, weight, bias, *pairs, backend=backend, **options
            )
    arguments = (*pairs, *options.values())
    if can_fuse(latents, weight, arguments, backend):
        return fused_divergence(latents, weight, bias, *arguments)[0]
    if resolve("linear_permuted_divergence", backend, weight.device, weight.dtype) == "reference":
        return linear_permuted_divergence_reference(latents, weight, bias, *pairs, **options)
    contributions = linear_contributions(latents, weight)
    return permuted_divergence(contributions, bias, *pairs, backend=backend, **options)
