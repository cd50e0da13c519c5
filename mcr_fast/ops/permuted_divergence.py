"""Permuted divergence: fake, autograd and the choice of backend."""

from typing import Any, NoReturn

import torch
from torch import Tensor

from mcr_fast._process import first_time
from mcr_fast.ops._autograd import (
    FIRST_ARGUMENT,
    call_backward,
    register_autograd,
    register_vmap,
)
from mcr_fast.ops._backend import resolve_divergence
from mcr_fast.ops._modes import wants_gradient
from mcr_fast.ops._overloads import find, of_backend, overloads, qualified
from mcr_fast.ops._unit_grad import raise_double_backward
from mcr_fast.pairing import weights_in_range
from mcr_fast.reference._similarity import accumulation_dtype
from mcr_fast.reference.permuted_divergence import permuted_divergence_reference

MAX_MODALITIES = 8  # of the compiled kernels
_TENSORS = 7  # the tensor arguments of the op come first, then subsets and the option strings
_INPUTS = 13


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    contributions, subsets, want_grad = args[0], args[7], args[12]
    dtype = accumulation_dtype(contributions.dtype)
    shape = contributions.shape if want_grad else (0, 0, 0)
    return (
        contributions.new_empty(len(subsets), dtype=dtype),
        contributions.new_empty(shape, dtype=dtype),
        contributions.new_empty(shape[2], dtype=dtype),
    )


def _backward_fake(
    grad: Tensor, unit_grad: Tensor, unit_grad_bias: Tensor, *args: Any
) -> tuple[Tensor, Tensor]:
    contributions, bias = args[0], args[1]
    dtype = contributions.dtype if bias is None else bias.dtype
    return torch.empty_like(unit_grad, dtype=contributions.dtype), unit_grad_bias.new_empty(
        contributions.shape[2], dtype=dtype
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], *inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:-1]
    ctx.set_materialize_grads(False)


def _backward_backward(ctx: Any, *grads: Tensor) -> NoReturn:
    raise_double_backward("permuted_divergence")


def _register(overload: str) -> None:
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * (_INPUTS - 2)
        if grad is None:
            return None, None, *nothing
        to_contributions, to_bias = call_backward(
            find("permuted_divergence_bwd", overload), grad, *ctx.saved_tensors, *ctx.options
        )
        has_bias = ctx.needs_input_grad[FIRST_ARGUMENT + 1]
        return to_contributions, to_bias if has_bias else None, *nothing

    if not first_time(qualified("permuted_divergence", overload)):
        return
    torch.library.register_fake(qualified("permuted_divergence_fwd", overload), _forward_fake)
    torch.library.register_fake(qualified("permuted_divergence_bwd", overload), _backward_fake)
    register_autograd("permuted_divergence_fwd", overload, backward, setup_context=_setup)
    register_autograd("permuted_divergence_bwd", overload, _backward_backward)
    for name in ("permuted_divergence_fwd", "permuted_divergence_bwd"):
        register_vmap(name, overload)


for _overload in overloads("permuted_divergence"):
    _register(_overload)


def permuted_divergence(
    contributions: Tensor,  # [M, N, C]
    bias: Tensor | None,  # [C]
    order: Tensor | None,  # [N] int64
    donors: Tensor | None,  # [1 or M, K] shifts with an order, [1 or M, K, N] rows without
    labels: Tensor | None,  # [N] int64 codes
    present: Tensor | None,  # [N, M] bool
    sample_weight: Tensor | None,  # [N]
    *,
    subsets: tuple[int, ...],
    strategy: str,
    clean_path: str,
    divergence: str,
    exclude: str,
    backend: str | None,
) -> Tensor:  # [S]
    """D_S of each subset, its gradient routed by `strategy` and `clean_path`."""
    too_many = len(contributions) > MAX_MODALITIES
    if backend is None and too_many:
        backend = "reference"
    chosen = resolve_divergence(
        "permuted_divergence",
        backend,
        contributions.device,
        contributions.shape[2],
        contributions.dtype,
    )
    if chosen == "reference":
        return permuted_divergence_reference(
            contributions,
            bias,
            order,
            donors,
            labels,
            present,
            sample_weight,
            subsets=subsets,
            strategy=strategy,
            clean_path=clean_path,
            divergence=divergence,
            exclude=exclude,
        )
    if sample_weight is not None:
        sample_weight = weights_in_range(sample_weight)
    if too_many:
        raise ValueError(
            f"backend={backend!r} takes at most {MAX_MODALITIES} modalities, got "
            f"{len(contributions)}; use backend=None or 'reference'"
        )
    divergences: Tensor = of_backend("permuted_divergence_fwd", chosen)(
        contributions,
        bias,
        order,
        donors,
        labels,
        present,
        sample_weight,
        subsets,
        strategy,
        clean_path,
        divergence,
        exclude,
        wants_gradient(contributions, bias),
    )[0]
    return divergences
