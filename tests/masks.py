"""Rows and batches with masked logits, and what results owe to them, for every backend.

A mask is an ordinary number: rows that agree in a masked class add nothing to it, rows that do not
are as far apart there as probabilities can be. So results are held to what they owe without the
masks, not to eps of the masks' size.
"""

from collections.abc import Callable

import torch
from divergences import Batch, Inputs, Rows, make_rows, run
from tolerances import check_gradient, check_value
from torch import Tensor

MASKS = (
    -1e4,
    -1e6,
    -1e9,
    torch.finfo(torch.bfloat16).min,
    torch.finfo(torch.float32).min,
)
OFFSETS = (1e3, 1e4, 1e6, -1e6)
ROW_SIDES = ("both", "added", "perturbed", "clean", "rows", "whole rows")
CARRIERS = ("bias", "first", "last, added", "all", "some rows", "classes of its own")
# lanes of rows, gathered lanes, classes in vectors
LAYOUTS = (("cyclic", 5), ("table", 6), ("cyclic", 50), ("table", 51))
SIZE = 8.0  # of the logits without their masks


def check(
    x: Inputs,
    ours: Callable[..., tuple[Tensor, ...]],
    upstream: Tensor | float = 1.0,
    size: float = SIZE,
    **options,
) -> None:
    """What `ours` returns, as `run` does, to the digits that logits of that size have."""
    name = "row_divergence" if isinstance(x, Rows) else "permuted_divergence"
    actual = ours(x, upstream=upstream, **options)
    truth = run(x.to(torch.float64), "reference", upstream, **options)
    plain = truth[0].to(actual[0].dtype)
    check_value(name, actual[0], truth[0], plain, growth=1 + size, case=options)
    rows = len(x.rows) if isinstance(x, Rows) else x.contributions.shape[1]
    for grad, expected in zip(actual[1:], truth[1:], strict=True):
        plain = expected.to(grad.dtype)
        check_gradient(name, grad, expected, plain, growth=2 * size, floor=1 / rows, case=options)


def masked_rows(side: str, mask: float, num_classes: int, dtype: torch.dtype) -> Rows:
    x = make_rows(11, 4, num_classes, seed=3, dtype=dtype)
    sides = {"both": (x.perturbed, x.clean), "perturbed": (x.perturbed,), "clean": (x.clean,)}
    for t in sides.get(side, ()):
        t[:, 2] = mask
    if side == "added":
        x.perturbed[:, 2] += mask
        x.clean[:, 2] += mask
    if side == "rows":  # each its own class
        x.perturbed[torch.arange(11), torch.arange(11) % num_classes] = mask
        x.clean[torch.arange(4), torch.arange(4) % num_classes] = mask
    if side == "whole rows":  # an even distribution, as any row without differences
        x.perturbed[:3] = mask
        x.clean[:2] = mask
    return x


def masked_batch(carrier: str, mask: float, base: Batch) -> Batch:
    """`base` with class 1 masked, in every row, in some, or by more than one summand."""
    x = base.map(torch.clone)
    a = x.contributions
    if carrier == "bias":
        x.bias[1] = mask
    elif carrier == "first":
        a[0, :, 1] = mask
    elif carrier == "last, added":
        a[-1, :, 1] += mask
    elif carrier == "all":
        a[:, :, 1] = mask
        x.bias[1] = mask
    elif carrier == "some rows":
        a[0, ::2, 1] = mask
        a[-1, 1::3, 3] = mask
    elif carrier == "classes of its own":
        a[0, torch.arange(a.shape[1]), torch.arange(a.shape[1]) % a.shape[2]] = mask
    return x


def rows_apart(side: str, offset: float, scale: float) -> Rows:
    """Rows with a common offset of their logits; on both sides, perturbed rows near clean ones."""
    x = make_rows(32, 8, 10, scale=scale, seed=1)
    if side == "both":
        x.perturbed = x.perturbed * 0.1 + x.clean[x.rows]
    if side != "clean":
        x.perturbed = x.perturbed + offset
    if side != "perturbed":
        x.clean = x.clean + offset
    return x


def batch_apart(where: str, offset: float, base: Batch) -> Batch:
    """`base` with a common offset of the logits of the bias, of one contribution, of every row."""
    x = base.map(torch.clone)
    if where == "bias":
        x.bias += offset
    elif where == "first":
        x.contributions[0] += offset
    else:
        x.contributions += offset * torch.arange(x.contributions.shape[1])[:, None]
    return x
