"""Permuted divergence of a linear fusion, straight from the latents, as one node of the graph.

The same as contributions followed by `permuted_divergence`. On a small batch the graph between the
two costs as much as the arithmetic: slices, transposes, a stack, and a zero-filled gradient of the
whole weight for each slice. Here every product reads and writes its columns in place. For eager
mode; under torch.compile the compiler does this work on the separate ops.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mcr_fast.ops._autograd import call_backward
from mcr_fast.ops._backend import resolve


def can_fuse(
    latents: Sequence[Tensor],  # M tensors [N, D_m]
    weight: Tensor,  # [C, sum of D_m]
    backend: str | None,
) -> bool:
    """Whether `linear_permuted_divergence` serves these tensors here."""
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return False
    if len(latents) > 8 or not torch.is_grad_enabled():
        return False
    device = weight.device
    if any(z.dtype != weight.dtype or z.device != device for z in latents):
        return False
    return resolve(
        "permuted_divergence", backend, device
    ) == "cpu" and not torch.is_autocast_enabled(device.type)


class _LinearPermutedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,  # [C, sum of D_m]
        bias: Tensor | None,  # [C]
        arguments: tuple[Any, ...],  # of the op, after the bias
        *latents: Tensor,  # [N, D_m]
    ) -> tuple[Tensor, Tensor]:
        contributions = weight.new_empty((len(latents), latents[0].shape[0], weight.shape[0]))
        columns = weight.split([z.shape[1] for z in latents], dim=1)
        with torch._C._AutoDispatchBelowAutograd():
            for z, w, out in zip(latents, columns, contributions, strict=True):
                torch.mm(z, w.t(), out=out)
            divergences, unit_grad, unit_grad_bias = (
                torch.ops.mcr_fast.permuted_divergence_fwd.default(
                    contributions, bias, *arguments, True
                )
            )
        ctx.save_for_backward(unit_grad, unit_grad_bias, contributions, weight, bias, *latents)
        ctx.arguments = arguments
        ctx.set_materialize_grads(False)
        return divergences, contributions

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_contributions: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        unit_grad, unit_grad_bias, contributions, weight, bias, *latents = ctx.saved_tensors
        grad_bias = None
        if grad is not None:
            # with create_graph its graph leads a second backward to the op's error
            routed, grad_bias = call_backward(
                torch.ops.mcr_fast.permuted_divergence_bwd.default,
                grad,
                unit_grad,
                unit_grad_bias,
                contributions,
                bias,
                *ctx.arguments,
            )
            grad_contributions = (
                routed if grad_contributions is None else routed + grad_contributions
            )
        if grad_contributions is None:
            return (None,) * (3 + len(latents))
        needs = ctx.needs_input_grad
        grad_weight = _weight_gradient(grad_contributions, latents, weight) if needs[0] else None
        columns = weight.split([z.shape[1] for z in latents], dim=1)
        products = zip(grad_contributions, columns, needs[3:], strict=True)
        grad_latents = [torch.mm(g, w) if need else None for g, w, need in products]
        return grad_weight, grad_bias if needs[1] else None, None, *grad_latents


def _weight_gradient(
    grad: Tensor,  # [M, N, C]
    latents: Sequence[Tensor],  # [N, D_m]
    weight: Tensor,  # [C, sum of D_m]
) -> Tensor:
    if torch.is_grad_enabled():
        return torch.cat([torch.mm(g.t(), z) for g, z in zip(grad, latents, strict=True)], dim=1)
    grad_weight = torch.empty_like(weight)
    blocks = grad_weight.split([z.shape[1] for z in latents], dim=1)
    for g, z, out in zip(grad, latents, blocks, strict=True):
        torch.mm(g.t(), z, out=out)
    return grad_weight


def linear_permuted_divergence(
    latents: Sequence[Tensor],  # M tensors [N, D_m]
    weight: Tensor,  # [C, sum of D_m]
    bias: Tensor | None,  # [C]
    *arguments: Any,  # of permuted_divergence_fwd, after the bias and but for want_grad
) -> tuple[Tensor, Tensor]:  # [S], [M, N, C]
    """The divergences and the contributions; only where `can_fuse`."""
    return _LinearPermutedDivergence.apply(weight, bias, arguments, *latents)
