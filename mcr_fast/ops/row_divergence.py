"""Divergence of perturbed rows from clean rows by index: fake, autograd, choice of backend."""

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
from mcr_fast.reference._divergence import mean_or_zero
from mcr_fast.reference._similarity import accumulation_dtype
from mcr_fast.reference.row_divergence import row_divergence_reference


def _forward_fake(
    perturbed: Tensor,
    clean: Tensor,
    rows: Tensor,
    row_weight: Tensor | None,
    divergence: str,
    want_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(perturbed.dtype, clean.dtype)
    return (
        clean.new_empty((), dtype=dtype),
        clean.new_empty((), dtype=dtype),
        clean.new_empty(perturbed.shape if want_grad else (0, 0), dtype=dtype),
        clean.new_empty(clean.shape if want_grad else (0, 0), dtype=dtype),
    )


def _backward_fake(
    grad: Tensor,
    unit_grad_perturbed: Tensor,
    unit_grad_clean: Tensor,
    perturbed: Tensor,
    clean: Tensor,
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(unit_grad_perturbed, dtype=perturbed.dtype),
        torch.empty_like(unit_grad_clean, dtype=clean.dtype),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[2:], *inputs[:2])
    ctx.set_materialize_grads(False)


def _backward_backward(ctx: Any, *grads: Tensor) -> NoReturn:
    raise_double_backward("row_divergence")


def _register(overload: str) -> None:
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        to_perturbed, to_clean = call_backward(
            find("row_divergence_bwd", overload), grad, *ctx.saved_tensors
        )
        return (
            to_perturbed if ctx.needs_input_grad[FIRST_ARGUMENT] else None,
            to_clean if ctx.needs_input_grad[FIRST_ARGUMENT + 1] else None,
            *(None,) * 4,
        )

    if not first_time(qualified("row_divergence", overload)):
        return
    torch.library.register_fake(qualified("row_divergence_fwd", overload), _forward_fake)
    torch.library.register_fake(qualified("row_divergence_bwd", overload), _backward_fake)
    register_autograd("row_divergence_fwd", overload, backward, setup_context=_setup)
    register_autograd("row_divergence_bwd", overload, _backward_backward)
    for name in ("row_divergence_fwd", "row_divergence_bwd"):
        register_vmap(name, overload)


for _overload in overloads("row_divergence"):
    _register(_overload)


def _resolve(backend: str | None, perturbed: Tensor, clean: Tensor) -> str:
    return resolve_divergence(
        "row_divergence",
        backend,
        perturbed.device,
        perturbed.shape[1],
        perturbed.dtype,
        clean.dtype,
    )


def row_divergence(
    perturbed: Tensor,  # [R, C]
    clean: Tensor,  # [N, C]
    rows: Tensor,  # [R] int64
    row_weight: Tensor | None,  # [R]
    *,
    divergence: str,
    backend: str | None,
) -> Tensor:  # []
    """Weighted mean of the divergences, differentiable in `perturbed` and `clean`."""
    chosen = _resolve(backend, perturbed, clean)
    row_weight = None if row_weight is None else weights_in_range(row_weight)
    if chosen == "reference":
        total, weight = row_divergence_reference(
            perturbed, clean, rows, row_weight, divergence=divergence
        )
    else:
        want_grad = wants_gradient(perturbed, clean)
        total, weight, _, _ = of_backend("row_divergence_fwd", chosen)(
            perturbed, clean, rows, row_weight, divergence, want_grad
        )
    return mean_or_zero(total, weight)


def row_divergence_parts(
    perturbed: Tensor,  # [R, C]
    clean: Tensor,  # [N, C]
    rows: Tensor,  # [R] int64
    row_weight: Tensor | None,  # [R]
    *,
    divergence: str,
    want_grad: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [], [], [R, C] or [0, 0], [N, C] or [0, 0]
    """Weighted sum, sum of weights, and gradients of the first in the accumulation dtype."""
    chosen = _resolve(backend, perturbed, clean)
    if chosen == "reference":
        return _parts_reference(perturbed, clean, rows, row_weight, divergence, want_grad)
    with torch.no_grad():
        forward = of_backend("row_divergence_fwd", chosen)
        parts: tuple[Tensor, Tensor, Tensor, Tensor] = forward(
            perturbed, clean, rows, row_weight, divergence, want_grad
        )
    return parts


def _parts_reference(
    perturbed: Tensor,  # [R, C]
    clean: Tensor,  # [N, C]
    rows: Tensor,  # [R] int64
    row_weight: Tensor | None,  # [R]
    divergence: str,
    want_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(perturbed.dtype, clean.dtype)
    w, z = (t.detach().to(dtype).requires_grad_(want_grad) for t in (perturbed, clean))
    with torch.set_grad_enabled(want_grad):
        total, weight = row_divergence_reference(w, z, rows, row_weight, divergence=divergence)
    if not want_grad:
        none = total.new_empty((0, 0))
        return total, weight, none, none
    grad_perturbed, grad_clean = torch.autograd.grad(total, (w, z))
    return total.detach(), weight.detach(), grad_perturbed, grad_clean
