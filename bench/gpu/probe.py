"""How far off this card's one-instruction logarithm, power and reciprocal are.

Over every float32 of [0.5, 4): the far form of a pair's value and the threshold of near pairs rest
on the logarithm's error and on its bias (docs/cost/permuted_divergence.md).
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.results import significant
from mcr_fast.kernels import math

EDGES = (0.5, 0.75, 0.9375, 1.0, 1.0625, 1.5, 2.0, 3.0, 4.0)
BLOCK = 1024
LG2, EX2, RCP = 0, 1, 2
# its number, and how its error is counted
FUNCTIONS = {
    "lg2.approx.ftz": (LG2, "absolute"),
    "ex2.approx.ftz": (EX2, "relative"),
    "rcp.approx.ftz": (RCP, "relative"),
}


@triton.jit
def _approximate_kernel(
    x_ptr,  # [count]
    y_ptr,  # [count]
    count,
    WHICH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < count, other=1.0)
    if WHICH == 0:
        y = math.log2(x, False)
    elif WHICH == 1:
        y = math.exp2(x, False)
    else:
        y = math.reciprocal(x, False)
    tl.store(y_ptr + at, y, mask=at < count)


def approximate(which: int, x: Tensor) -> Tensor:  # [count] -> [count]
    """One of FUNCTIONS."""
    y = torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), BLOCK),)
    _approximate_kernel[grid](
        x_ptr=x, y_ptr=y, count=x.numel(), WHICH=which, BLOCK=BLOCK, num_warps=4
    )
    return y


def floats(first: float, last: float, device: str, every: int = 1) -> Tensor:
    """Every float32 from `first` up to `last`, or one of so many."""
    ends = torch.tensor([first, last]).view(torch.int32).tolist()
    return torch.arange(*ends, every, dtype=torch.int32, device=device).view(torch.float32)


def error(which: int, x: Tensor, y: Tensor) -> Tensor:
    """Absolute of a logarithm, relative of the others, in float64."""
    exact = {LG2: torch.log2, EX2: torch.exp2, RCP: torch.reciprocal}[which](x.double())
    off = y.double() - exact
    return off if which == LG2 else off / exact


def probe(device: str = "cuda", every: int = 1) -> Iterator[dict[str, str]]:
    """The worst error of each function in each interval as a figure, with its bias."""
    for name, (which, kind) in FUNCTIONS.items():
        for first, last in pairwise(EDGES):
            x = floats(first, last, device, every)
            off = error(which, x, approximate(which, x))
            most, bias, square = off.abs().max(), off.mean(), off.square().mean().sqrt()
            words = f"{kind}, bias {float(bias):.3g}, root mean square {float(square):.3g}"
            yield {
                "what": f"{name} of [{first:g}, {last:g}), worst error",
                "measured": significant(float(most), 3),
                "unit": "",
                "detail": words,
            }
