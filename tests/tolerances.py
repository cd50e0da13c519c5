"""How far a result may be from the truth, for every op: one table, one bound, one way to measure.

The truth is the reference in float64. What plain torch loses in the same dtype is measured beside
it, never assumed:

    error(ours) <= 2 * error(reference in the same dtype) + k * (eps_out + eps * growth) * scale

eps_out is the spacing of the result's dtype, eps that of the arithmetic (float32, or float64 for
float64), growth how much the op magnifies a rounding of its input (1 / temperature, say), and scale
the size of the truth. The factor 2 is for a different order of summation, k for the polynomials.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Multiples of eps: of a value, of a gradient's norm, of a gradient's worst element."""

    value: float
    norm: float
    worst: float
    reason: str


TABLE = {
    "nt_xent": Tolerance(
        4, 2, 4, "similarities are sums of D products; bfloat16 products round H and Z once more"
    ),
    "sup_con": Tolerance(
        4, 2, 4, "as nt_xent, and positives subtract 1/|P| from a probability close to it"
    ),
    "reconstruction_loss": Tolerance(
        2, 1, 1, "sums of squares, added up in float64 row by row; one product per gradient element"
    ),
}


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def check_value(
    op: str,
    actual: Tensor,
    truth: Tensor,  # float64
    plain: Tensor,
    *,
    growth: float = 1.0,
    case: object = "",
) -> None:
    """A loss, or a tensor of them, against the bound."""
    assert actual.dtype == arithmetic(plain.dtype), f"{case}: a loss is not {actual.dtype}"
    assert actual.shape == truth.shape, f"{case}: {list(actual.shape)}, not {list(truth.shape)}"
    assert actual.isfinite().all(), f"{case}: {actual} is not finite, {truth} is"
    error = (actual.double() - truth).abs()
    allowed = 2 * (plain.double() - truth).abs()
    allowed += TABLE[op].value * eps(actual.dtype) * (truth.abs() + growth)
    assert (error <= allowed).all(), f"{case}: {actual} for {truth}, off by {error} > {allowed}"


def check_gradient(
    op: str,
    actual: Tensor,
    truth: Tensor,  # float64
    plain: Tensor,
    *,
    growth: float = 1.0,
    case: object = "",
) -> None:
    """A gradient as a vector (norm, direction, bias) and element by element."""
    assert actual.dtype == plain.dtype, f"{case}: {actual.dtype}, not {plain.dtype}"
    assert actual.shape == truth.shape, f"{case}: {list(actual.shape)}, not {list(truth.shape)}"
    assert actual.isfinite().all(), f"{case}: the gradient is not finite"
    if truth.numel() == 0:
        return
    difference, allowed = actual.double() - truth, plain.double() - truth
    unit = eps(actual.dtype) + eps(arithmetic(actual.dtype)) * growth
    norm, biggest = truth.norm(), truth.abs().max()

    error, bound = difference.norm(), 2 * allowed.norm() + TABLE[op].norm * unit * norm
    assert error <= bound, f"{case}: error {error:.3g} > {bound:.3g} in norm, |grad| {norm:.3g}"
    worst = difference.abs().argmax()
    error = difference.abs().max()
    bound = 2 * allowed.abs().max() + TABLE[op].worst * unit * biggest
    where = tuple(int(i) for i in torch.unravel_index(worst, truth.shape))
    assert error <= bound, f"{case}: error {error:.3g} > {bound:.3g} at {where}, {truth[where]}"
    if norm > 0:
        cosine = (actual.double() * truth).sum() / (actual.double().norm() * norm)
        assert cosine >= 1 - 4 * (TABLE[op].norm * unit) ** 2 - 1e-6, f"{case}: cosine {cosine}"
    # errors that point one way do not average out over a training run
    bias, spread = difference.mean().abs(), difference.norm() / difference.numel()
    bound = 6 * spread + 2 * allowed.mean().abs() + 1e-12 * biggest
    assert bias <= bound, f"{case}: bias {bias:.3g} > {bound:.3g}"
