"""Divergence of perturbed rows from indexed clean rows: choice of backend."""

import torch
from torch import Tensor

from mcr_fast.ops._backend import resolve
from mcr_fast.reference._divergence import mean_or_zero
from mcr_fast.reference._similarity import accumulation_dtype
from mcr_fast.reference.row_divergence import row_divergence_reference


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
    resolve("row_divergence", backend, perturbed.device)
    total, weight = row_divergence_reference(
        perturbed, clean, rows, row_weight, divergence=divergence
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [], [], [R, C] or [0], [N, C] or [0]
    """Weighted sum, sum of weights, and the gradients of the sum; no autograd.

    The gradients are in the accumulation dtype, and empty without `want_grad`.
    """
    resolve("row_divergence", backend, perturbed.device)
    return _parts_reference(perturbed, clean, rows, row_weight, divergence, want_grad)


def _parts_reference(
    perturbed: Tensor,
    clean: Tensor,
    rows: Tensor,
    row_weight: Tensor | None,
    divergence: str,
    want_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(perturbed.dtype, clean.dtype)
    w, z = (t.detach().to(dtype).requires_grad_(want_grad) for t in (perturbed, clean))
    with torch.set_grad_enabled(want_grad):
        total, weight = row_divergence_reference(w, z, rows, row_weight, divergence=divergence)
    if not want_grad:
        none = total.new_empty(0)
        return total, weight, none, none
    grad_perturbed, grad_clean = torch.autograd.grad(total, (w, z))
    return total.detach(), weight.detach(), grad_perturbed, grad_clean
