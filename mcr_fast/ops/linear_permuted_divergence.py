"""Permuted divergence of a linear fusion, straight from the latents, as one node of the graph.

The same as contributions followed by `permuted_divergence`. On a small batch the graph between the
two costs as much as the arithmetic: slices, transposes, a stack, and a zero-filled gradient of the
whole weight for each slice. Here one op a direction makes the products as well, each reading and
writing its columns in place. For eager mode; under torch.compile the compiler does this work on the
separate ops.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mcr_fast import env
from mcr_fast.ops._backend import resolve
from mcr_fast.ops._modes import autocast_enabled, holds_values, recorded, refuse_batched
from mcr_fast.ops._unit_grad import raise_double_backward
from mcr_fast.reference._divergence import weights_in_range
from mcr_fast.reference._similarity import accumulation_dtype

_SERVED = env.has_kernel("linear_permuted_divergence_fwd", "CPU")
if _SERVED:
    _forward = torch.ops.mcr_fast.linear_permuted_divergence_fwd.default
    _backward = torch.ops.mcr_fast.linear_permuted_divergence_bwd.default


def can_fuse(
    latents: Sequence[Tensor],  # M tensors [N, D_m]
    weight: Tensor,  # [C, sum of D_m]
    backend: str | None,
) -> bool:
    """Whether `linear_permuted_divergence` serves these tensors here."""
    if recorded() or forward_ad._current_level >= 0:
        return False
    if (
        not all(map(holds_values, (*latents, weight)))
        or len(latents) > 8
        or not (_SERVED and torch.is_grad_enabled())
    ):
        return False
    device = weight.device
    if any(z.dtype != weight.dtype or z.device != device for z in latents):
        return False
    # the op's products have the dtype of their factors, and 16 bits are too few for logits
    if weight.dtype.itemsize == 2 or autocast_enabled(device):
        return False
    return resolve("permuted_divergence", backend, device) == "cpu"


def in_float32(
    latents: Sequence[Tensor],  # M tensors [N, D_m]
    weight: Tensor,  # [C, sum of D_m]
    bias: Tensor | None,  # [C]
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """The factors in the dtype of the sums: what products of 16 bits would round is logits."""
    dtype = accumulation_dtype(weight.dtype, *(z.dtype for z in latents))
    wide = [z.to(dtype) for z in latents]
    return wide, weight.to(dtype), None if bias is None else bias.to(dtype)


class _OnlyOnce(torch.autograd.Function):
    """Gives the first `count` of the tensors a graph that leads a second backward to an error."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.clone() for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise_double_backward("permuted_divergence")


class _LinearPermutedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,  # [C, sum of D_m]
        bias: Tensor | None,  # [C]
        arguments: tuple[Any, ...],  # of the op, after the bias
        *latents: Tensor,  # [N, D_m]
    ) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            divergences, unit_grad, unit_grad_bias, contributions = _forward(
                latents, weight, bias, *arguments, True
            )
        ctx.save_for_backward(unit_grad, unit_grad_bias, contributions, weight, bias, *latents)
        ctx.arguments = arguments
        ctx.set_materialize_grads(False)
        return divergences, contributions

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_contributions: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        if grad is None and grad_contributions is None:
            return (None,) * len(needs)
        refuse_batched("permuted_divergence", grad, grad_contributions)
        unit_grad, unit_grad_bias, contributions, weight, bias, *latents = ctx.saved_tensors
        to_task = grad_contributions if torch.is_grad_enabled() else None
        if grad is None and to_task is not None:
            return _with_graph(to_task, needs, weight, latents)
        with torch._C._AutoDispatchBelowAutograd():
            grad_latents, grad_weight, grad_bias = _backward(
                grad,
                unit_grad,
                unit_grad_bias,
                contributions,
                grad_contributions if to_task is None else None,
                (*needs[3:], needs[0]),
                latents,
                weight,
                bias,
                *ctx.arguments,
            )
        if torch.is_grad_enabled():
            made = (grad_weight, grad_bias, *grad_latents)
            made = _OnlyOnce.apply(len(made), *made, weight, *latents)
            grad_weight, grad_bias, *grad_latents = made
        grads = (
            grad_weight if needs[0] else None,
            grad_bias if needs[1] and grad is not None else None,
            None,
            *(g if need else None for g, need in zip(grad_latents, needs[3:], strict=True)),
        )
        if to_task is None:
            return grads
        pairs = zip(grads, _with_graph(to_task, needs, weight, latents), strict=True)
        return tuple(b if a is None else a if b is None else a + b for a, b in pairs)


def _with_graph(
    grad_contributions: Tensor,  # [M, N, C]
    needs: Sequence[bool],
    weight: Tensor,  # [C, sum of D_m]
    latents: Sequence[Tensor],  # M tensors [N, D_m]
) -> tuple[Tensor | None, ...]:
    """The gradient through the contributions alone, to be differentiated again.

    The logits made of them are the task's: a penalty on its gradient is nobody else's business.
    """
    columns = weight.split([z.shape[1] for z in latents], dim=1)
    per_modality = list(zip(grad_contributions, latents, columns, strict=True))
    return (
        torch.cat([g.T @ z for g, z, _ in per_modality], dim=1) if needs[0] else None,
        None,
        None,
        *(g @ w if need else None for (g, _, w), need in zip(per_modality, needs[3:], strict=True)),
    )


def linear_permuted_divergence(
    latents: Sequence[Tensor],  # M tensors [N, D_m]
    weight: Tensor,  # [C, sum of D_m]
    bias: Tensor | None,  # [C]
    *arguments: Any,  # of permuted_divergence_fwd, after the bias and but for want_grad
) -> tuple[Tensor, Tensor]:  # [S], [M, N, C]
    """The divergences and the contributions; only where `can_fuse`."""
    *masks, sample_weight = arguments[:5]
    if sample_weight is not None:
        arguments = (*masks, weights_in_range(sample_weight), *arguments[5:])
    return _LinearPermutedDivergence.apply(weight, bias, arguments, *latents)
