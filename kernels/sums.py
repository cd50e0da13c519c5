"""The last step of a sum: what programs left, added up in their order by one of them."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # numbers read at once


@triton.jit
def store_sums(total, weight, total_ptr, weight_ptr, MEAN: tl.constexpr):
    """Two float64 sums in float32; with MEAN the first over the second, 0 where that is 0."""
    if MEAN:
        total = tl.where(weight.to(tl.float32) == 0.0, 0.0, total / weight)
    tl.store(total_ptr, total.to(tl.float32))
    if weight_ptr is not None:
        tl.store(weight_ptr, weight.to(tl.float32))


@triton.jit
def _add_up_kernel(
    values_ptr,  # [size]
    weights_ptr,  # [size] or None
    total_ptr,  # []
    weight_ptr,  # [] or None
    size,
    count,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    total = tl.zeros([BLOCK], tl.float64)
    weight = tl.zeros([BLOCK], tl.float64)
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(values_ptr + at, mask=at < size, other=0.0).to(tl.float64)
        if weights_ptr is not None:
            weight += tl.load(weights_ptr + at, mask=at < size, other=0.0).to(tl.float64)
    sum_of_weights = tl.sum(weight, 0)
    if weights_ptr is None:
        sum_of_weights += count
    store_sums(tl.sum(total, 0), sum_of_weights, total_ptr, weight_ptr, MEAN)


def add_up(
    values: Tensor,  # [size] float32
    weights: Tensor | None,  # [size] float32
    count: int,
    total: Tensor,  # [] float32 to fill
    weight: Tensor | None,  # [] float32 to fill
    mean: bool,
) -> None:
    """Sums of the values and of the weights, `count` if there are none; or the weighted mean."""
    _add_up_kernel[(1,)](
        values_ptr=values,
        weights_ptr=weights,
        total_ptr=total,
        weight_ptr=weight,
        size=len(values),
        count=count,
        MEAN=mean,
        BLOCK=min(BLOCK, triton.next_power_of_2(max(len(values), 1))),
        num_warps=8,
    )
