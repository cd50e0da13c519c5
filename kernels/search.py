"""Binary search, for kernels that read what was sorted on the device."""

import triton
import triton.language as tl


@triton.jit
def first_of(
    sorted_ptr,  # [count], ascending
    x,  # a block
    count,
    steps,  # that halve `count` to nothing: its bits
    PAST: tl.constexpr,
):
    """Where the first stands that is not below x, or with PAST that is above it."""
    low = x * 0
    high = low + count
    for _ in range(steps):
        middle = (low + high) // 2
        inside = low < high
        there = tl.load(sorted_ptr + middle, mask=inside, other=0)
        below = inside & ((there <= x) if PAST else (there < x))
        low, high = tl.where(below, middle + 1, low), tl.where(below, high, middle)
    return low
