"""Divergence of perturbed rows from clean rows by index: fake, autograd, choice of backend."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mcr_fast.ops._backend import resolve
from mcr_fast.ops._dispatch import call, find, register
from mcr_fast.ops._limits import Call
from mcr_fast.ops._modes import wants_gradient
from mcr_fast.pairing import weights_in_range
from mcr_fast.reference._divergence import mean_or_zero
from mcr_fast.reference._similarity import accumulation_dtype
from mcr_fast.reference.row_divergence import row_divergence_reference

NOTES = 4  # numbers that a perturbed row leaves in place of its gradient, where asked for


def _forward_fake(
    perturbed: Tensor,
    clean: Tensor,
    rows: Tensor,
    row_weight: Tensor | None,
    divergence: str,
    want_grad: bool,
    notes: bool,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(perturbed.dtype, clean.dtype)
    kept = (perturbed.shape[0], NOTES) if notes else perturbed.shape
    return (
        clean.new_empty((), dtype=dtype),
        clean.new_empty((), dtype=dtype),
        clean.new_empty(kept if want_grad else (0, 0), dtype=dtype),
        clean.new_empty(clean.shape if want_grad else (0, 0), dtype=dtype),
    )


def _backward_fake(
    grad: Tensor,
    weight: Tensor | None,
    of_perturbed: Tensor,
    unit_grad_clean: Tensor,
    perturbed: Tensor,
    clean: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    return perturbed.new_empty(perturbed.shape), clean.new_empty(clean.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.divergence, _, ctx.notes, mean = inputs
    ctx.save_for_backward(output[1] if mean else None, *output[2:], *tensors)


def _backward(
    ctx: Any, run: Callable[..., tuple[Tensor, Tensor]], grad: Tensor, *_: None
) -> tuple[Tensor, Tensor]:
    return run(grad, *ctx.saved_tensors, ctx.divergence, ctx.notes)


register(
    "row_divergence",
    differentiable=2,
    attached=1,
    forward_fake=_forward_fake,
    backward_fake=_backward_fake,
    setup=_setup,
    backward=_backward,
)


def _resolve(backend: str | None, perturbed: Tensor, clean: Tensor) -> str:
    dtypes = (perturbed.dtype, clean.dtype)
    return resolve("row_divergence", backend, clean.device, *dtypes, call=Call(clean.shape[1]))


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
        parts = row_divergence_reference(perturbed, clean, rows, row_weight, divergence=divergence)
        return mean_or_zero(*parts)
    want = wants_gradient(perturbed, clean)
    # Triton's backward waits for memory: it makes one gradient anew rather than read and write it
    # in float32.
    notes = chosen == "triton"
    inputs = (perturbed, clean, rows, row_weight, divergence, want, notes, True)
    mean: Tensor = call(find("row_divergence_fwd", chosen), *inputs, graph=want)[0]
    return mean


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
        inputs = (perturbed, clean, rows, row_weight, divergence, want_grad, False, False)
        parts: tuple[Tensor, Tensor, Tensor, Tensor] = call(
            find("row_divergence_fwd", chosen), *inputs, graph=False
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
