"""What H takes of the rows and of the columns of a block, in the order of its tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast.kernels.config import PRECISE
from mcr_fast.kernels.contrastive.block import BLOCK
from mcr_fast.kernels.contrastive.rows import Rows
from mcr_fast.kernels.math import LOG2E, exp2


@dataclass(frozen=True)
class Statistics:
    """What H takes of a set of rows, in the frame of its tiles; of absent rows it is worth 0."""

    weight: Tensor  # [padded R] float32, of the exponentials; its log2 with running maxima
    other: Tensor  # [padded R] float32: nt_xent log2 of the sum, sup_con 1 / number of positives


@triton.jit
def _statistics_kernel(
    first_ptr,  # [R], as given: logarithms of sums
    second_ptr,  # [R]: nt_xent log W, sup_con 1 / number of positives
    order_ptr,  # [R]
    num_present_ptr,  # [1]
    weight_ptr,  # [padded R]
    other_ptr,  # [padded R]
    padded_rows,
    OVER_PAIRS: tl.constexpr,
    RUNNING_MAX: tl.constexpr,
    PRECISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < padded_rows
    present = rows < tl.load(num_present_ptr)
    from_row = tl.load(order_ptr + rows, mask=present, other=0)
    first = tl.load(first_ptr + from_row, mask=present, other=0.0)
    second = tl.load(second_ptr + from_row, mask=present, other=0.0)
    if OVER_PAIRS:
        log2_weight, other = second * LOG2E, first * LOG2E
    else:
        log2_weight, other = -(first * LOG2E), second
    log2_weight = tl.where(present, log2_weight, -float("inf"))
    weight = log2_weight if RUNNING_MAX else exp2(log2_weight, PRECISE)
    tl.store(weight_ptr + rows, weight, mask=inside)
    tl.store(other_ptr + rows, other, mask=inside)


def lay_out(
    stats: Tensor,  # [2, R]
    rows: Rows,
    over_pairs: bool,
    running_max: bool,
) -> Statistics:
    """Statistics of the rows as the tiles have them."""
    first, second = stats.contiguous()
    made = Statistics(rows.per_row(torch.float32), rows.per_row(torch.float32))
    _statistics_kernel[(triton.cdiv(rows.padded_rows, BLOCK),)](
        first_ptr=first,
        second_ptr=second,
        order_ptr=rows.order,
        num_present_ptr=rows.num_present,
        weight_ptr=made.weight,
        other_ptr=made.other,
        padded_rows=rows.padded_rows,
        OVER_PAIRS=over_pairs,
        RUNNING_MAX=running_max,
        PRECISE=PRECISE,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return made


@triton.jit
def _largest(
    weight_ptr, other_ptr, padded_rows,
    RUNNING_MAX: tl.constexpr, PRECISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest of e^(log_sum + log W), which no exponential of a negative passes."""
    largest = tl.zeros([BLOCK], tl.float32) + 1.0
    for first in range(0, padded_rows, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        inside = rows < padded_rows
        weight = tl.load(weight_ptr + rows, mask=inside, other=0.0)
        other = tl.load(other_ptr + rows, mask=inside, other=0.0)
        c = exp2(weight + other, PRECISE) if RUNNING_MAX else weight * exp2(other, PRECISE)
        largest = tl.maximum(largest, tl.where(inside, c, 0.0))
    return tl.max(largest, 0)


@triton.jit
def _half_scale_kernel(
    weight_ptr,  # [padded R]
    other_ptr,  # [padded R]
    col_weight_ptr,  # [padded Q]
    col_other_ptr,  # [padded Q]
    col_inverse_ptr,  # [padded Q]
    h_scale_ptr,  # [1]
    padded_rows,
    padded_columns,
    OVER_PAIRS: tl.constexpr,
    RUNNING_MAX: tl.constexpr,
    PRECISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the power of two that brings H to the upper end of float16's range."""
    bound = tl.full((), 1.0, tl.float32)
    if OVER_PAIRS:  # else probabilities and shares, which 1 bounds
        of_rows = _largest(weight_ptr, other_ptr, padded_rows, RUNNING_MAX, PRECISE, BLOCK)
        of_columns = _largest(
            col_weight_ptr, col_other_ptr, padded_columns, RUNNING_MAX, PRECISE, BLOCK
        )
        bound = tl.maximum(of_rows, of_columns)
    longest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, padded_columns, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inverse = tl.load(col_inverse_ptr + columns, mask=columns < padded_columns, other=0.0)
        longest = tl.maximum(longest, inverse)
    bound = tl.minimum(tl.maximum(bound * tl.max(longest, 0), 2.0**-74), 2.0**120)
    # H is 2 `bound` at most: the largest power of two that `bound` times it is no more than 2^14
    bits = bound.to(tl.int32, bitcast=True)
    exponent = 14 - ((bits >> 23) - 127) - ((bits & 0x7FFFFF) != 0).to(tl.int32)
    tl.store(h_scale_ptr, ((exponent + 127) << 23).to(tl.float32, bitcast=True))


def half_scale(
    of_rows: Statistics,
    of_columns: Statistics,
    columns: Rows,
    over_pairs: bool,
    running_max: bool,
) -> Tensor | None:  # [1]
    """What H of float16 rows is multiplied by before it is rounded; None for other dtypes."""
    if columns.scaled.dtype != torch.float16:
        return None
    made = columns.inverse.new_empty(1)
    _half_scale_kernel[(1,)](
        weight_ptr=of_rows.weight,
        other_ptr=of_rows.other,
        col_weight_ptr=of_columns.weight,
        col_other_ptr=of_columns.other,
        col_inverse_ptr=columns.inverse,
        h_scale_ptr=made,
        padded_rows=len(of_rows.weight),
        padded_columns=columns.padded_rows,
        OVER_PAIRS=over_pairs,
        RUNNING_MAX=running_max,
        PRECISE=PRECISE,
        BLOCK=1024,
        num_warps=8,
    )
    return made
