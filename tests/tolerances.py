"""How far a result may be from the truth, for every op: one table, one bound, one way to measure.

The truth is the reference in float64. What plain torch loses in the same dtype is measured beside
it, never assumed:

    error(ours) <= 2 * error(reference in the same dtype)
                   + (k * eps * (1 + growth) + stored * eps_stored) * scale

eps is the spacing of the arithmetic (float32, or float64 for float64), growth how much the op
magnifies a rounding of its input (1 / temperature, say), scale the size of the truth. The factor 2
is for another order of summation, k for that of all sums and for the polynomials. `stored` counts
intermediates kept in the 16-bit input dtype of spacing eps_stored; wider inputs have none.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """k of a value and of a gradient, and `stored` of a gradient."""

    value: float
    gradient: float
    stored: float
    reason: str


TABLE = {
    "permuted_divergence": Tolerance(
        4, 4, 0, "sums over C and K, powers of two and logs with a few eps of error, all in float32"
    ),
    "row_divergence": Tolerance(4, 4, 0, "as permuted_divergence"),
    "nt_xent": Tolerance(
        4, 4, 0.5, "sums of D and of L products; bfloat16 products round H, Z and their product"
    ),
    "sup_con": Tolerance(
        4, 4, 0.5, "as nt_xent; positives subtract 1/|P| from a probability close to it"
    ),
    "gather_add": Tolerance(
        4, 4, 0, "three terms a member of the subset, sums over K; erf and powers of two in float32"
    ),
    "engine": Tolerance(
        16, 64, 0, "every rounding of a fusion of several layers, run in chunks; factors cancel"
    ),
    "reconstruction_loss": Tolerance(
        1, 1, 0, "sums of squares, added up in float64 row by row; one product per gradient element"
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
    floor: float = 0.0,
    coherent: bool = False,
    case: object = "",
) -> None:
    """A gradient as a vector (norm, direction, bias) and element by element.

    `floor` is the size of the terms that add up to it, where they may cancel altogether.
    `coherent`: a row's classes share a rounding, so that their errors may point one way together.
    """
    assert actual.dtype == plain.dtype, f"{case}: {actual.dtype}, not {plain.dtype}"
    assert actual.shape == truth.shape, f"{case}: {list(actual.shape)}, not {list(truth.shape)}"
    assert actual.isfinite().all(), f"{case}: the gradient is not finite"
    if truth.numel() == 0:
        return
    difference, plain_difference = actual.double() - truth, plain.double() - truth
    unit = TABLE[op].gradient * eps(arithmetic(actual.dtype)) * (1 + growth)
    if actual.dtype.itemsize == 2:
        unit += TABLE[op].stored * eps(actual.dtype)
    # below it a dtype has no numbers: half of it is lost whatever the arithmetic
    spacing = torch.finfo(actual.dtype).smallest_normal * eps(actual.dtype)
    norm = truth.norm().clamp(min=floor)
    biggest = truth.abs().max().clamp(min=floor)

    error = difference.norm()
    bound = 2 * plain_difference.norm() + unit * norm
    bound += spacing * truth.numel() ** 0.5
    assert error <= bound, f"{case}: error {error:.3g} > {bound:.3g} in norm, |grad| {norm:.3g}"
    if truth.norm() > floor:
        cosine = torch.cosine_similarity(actual.double().flatten(), truth.flatten(), dim=0)
        assert 1 - cosine <= (bound / norm) ** 2 + 1e-12, f"{case}: cosine {cosine}"
    worst = tuple(int(i) for i in torch.unravel_index(difference.abs().argmax(), truth.shape))
    error = difference.abs().max()
    bound = 2 * plain_difference.abs().max() + unit * biggest + spacing
    assert error <= bound, f"{case}: error {error:.3g} > {bound:.3g} at {worst}, {truth[worst]}"
    if actual.dtype == truth.dtype == torch.float64:
        return  # the truth's own errors are as large
    # errors that point one way do not average out over a training run
    bias, spread = difference.mean().abs(), difference.norm() / difference.numel()
    if coherent and difference.ndim > 1:  # what is independent is a row
        of_rows = difference.flatten(0, -2).sum(-1)
        spread = torch.maximum(spread, of_rows.norm() / difference.numel())
    bound = 6 * spread + 2 * plain_difference.mean().abs()
    bound += unit * truth.mean().abs() + eps(arithmetic(actual.dtype)) * truth.abs().mean()
    assert bias <= bound, f"{case}: bias {bias:.3g} > {bound:.3g}"
