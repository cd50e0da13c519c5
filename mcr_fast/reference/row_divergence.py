"""Divergence of perturbed rows from indexed clean rows in plain torch."""

from torch import Tensor

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

    Differentiable by autograd; expands the clean rows to [R, C].
    """
    dtype = accumulation_dtype(perturbed.dtype, clean.dtype)
    weight = rows.new_ones(rows.shape) if row_weight is None else row_weight
    weight = weight.to(dtype)
    total = weighted_sum(clean.to(dtype)[rows], perturbed.to(dtype), weight, divergence)
    return total, weight.sum()
