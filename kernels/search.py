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
    return first_between(sorted_ptr, x, low, low + count, steps, PAST)


@triton.jit
def first_between(
    sorted_ptr,  # ascending from low to high
    x,  # a block
    low,  # a block, of x's dtype
    high,  # same
    steps,  # that halve the longest stretch to nothing
    PAST: tl.constexpr,
):
    """The same of stretches from low to high; high where there is none."""
    for _ in range(steps):
        middle = (low + high) // 2
        inside = low < high
        there = tl.load(sorted_ptr + middle, mask=inside, other=0)
        below = inside & ((there <= x) if PAST else (there < x))
        low, high = tl.where(below, middle + 1, low), tl.where(below, high, middle)
    return low
