"""Divergence of perturbed rows from indexed clean rows in plain torch."""

import math

import torch
from torch import Tensor

from mcr_fast.pairing import no_negative
from mcr_fast.reference._divergence import weighted_sum
from mcr_fast.reference._similarity import accumulation_dtype


def row_divergence_reference(
    perturbed: Tensor,  # [R, C]
    clean: Tensor,  # [N, C]
    rows: Tensor,  # [R] int64
    row_weight: Tensor | None,  # [R], 0 drops a row
    *,
    divergence: str,
) -> tuple[Tensor, Tensor]:  # [], []
    """Return sum of weight_r * divergence(clean[rows[r]], perturbed[r]) and the sum of the weights.

    Differentiable by autograd; expands the clean rows to [R, C]. If a row names no clean row both
    are NaN, and with them the gradients of a mean.
    """
    num_clean = clean.shape[0]
    if num_clean == 0 and rows.shape[0] > 0:
        raise ValueError("rows must be in 0..N-1, but clean has no rows")
    dtype = accumulation_dtype(perturbed.dtype, clean.dtype)
    weight = rows.new_ones(rows.shape) if row_weight is None else row_weight
    weight = no_negative(weight.to(dtype))
    valid = ((rows >= 0) & (rows < num_clean)).all()
    factor = torch.where(valid, 1.0, math.nan).to(dtype)
    held = clean.to(dtype)[rows.clamp(0, max(num_clean - 1, 0))]
    total = weighted_sum(held, perturbed.to(dtype), weight, divergence)
    return total * factor, weight.sum() * factor
