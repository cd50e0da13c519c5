"""From what each row of a contrastive batch left: the loss, and what its gradient is made with."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast.kernels.contrastive.batch import Batch
from mcr_fast.kernels.math import LN2, log2_of_double

BLOCK = 2048  # rows that the program reads at once


@triton.jit
def _row_results(
    loss_ptr, c_ptr, sum_ptr, max_ptr, begin_ptr, end_ptr, rows, inside, OVER_PAIRS: tl.constexpr
):
    """Losses, terms and weights of some rows, and the largest entry of their H."""
    begin = tl.load(begin_ptr + rows, mask=inside, other=0)
    positives = tl.load(end_ptr + rows, mask=inside, other=0) - begin - 1
    total = tl.load(sum_ptr + rows, mask=inside, other=1.0)
    loss = tl.load(loss_ptr + rows, mask=inside, other=0.0)
    if OVER_PAIRS:
        # a row without negatives has c = 0 and no sum
        c = tl.load(c_ptr + rows, mask=inside, other=0.0)
        return loss, tl.maximum(positives, 0), tl.where(c == 0.0, 0.0, c / total), c
    else:
        # the two large parts of a loss, a positive's logit and the maximum, cancel in float64
        top = tl.load(max_ptr + rows, mask=inside, other=0.0).to(tl.float64)
        loss = log2_of_double(total) + (top - loss / tl.maximum(positives, 1).to(tl.float64))
        anchor = positives > 0
        weight = tl.where(anchor, 1.0 / total, 0.0)
        return tl.where(anchor, loss, 0.0), anchor.to(tl.int32), weight, weight * 0.0 + 1.0


@triton.jit
def _finish_rows_kernel(
    loss_ptr,  # [padded L] float64, of the rows; or the sums of their positives' logits
    c_ptr,  # [padded L] float64; only OVER_PAIRS
    sum_ptr,  # [padded L] float64
    max_ptr,  # [padded L]
    begin_ptr,  # [padded L]
    end_ptr,  # [padded L]
    inverse_ptr,  # [padded L]
    value_ptr,  # []
    weight_ptr,  # [padded L]; None without gradient
    h_scale_ptr,  # [1]: what H is multiplied by before it is rounded
    factor_ptr,  # [1]: of the gradient; 0 where there are no terms
    padded_rows,
    temperature,
    OVER_PAIRS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program, which adds the rows up in their order."""
    value = tl.zeros([BLOCK], tl.float64)
    terms = tl.zeros([BLOCK], tl.int64)
    largest = tl.zeros([BLOCK], tl.float64)
    longest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, padded_rows, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        inside = rows < padded_rows
        loss, count, weight, c = _row_results(
            loss_ptr, c_ptr, sum_ptr, max_ptr, begin_ptr, end_ptr, rows, inside, OVER_PAIRS
        )
        value += tl.where(inside, loss, 0.0)
        terms += tl.where(inside, count, 0)
        if weight_ptr is not None:
            largest = tl.maximum(largest, tl.where(inside, c, 0.0))
            if HALF:
                inverse = tl.load(inverse_ptr + rows, mask=inside, other=0.0)
                longest = tl.maximum(longest, inverse)
            tl.store(weight_ptr + rows, weight.to(tl.float32), mask=inside)
    count = tl.sum(terms, 0).to(tl.float64)
    at_least_one = tl.maximum(count, 1.0)
    mean = tl.where(count > 0.0, tl.sum(value, 0) * LN2 / at_least_one, 0.0)
    tl.store(value_ptr, mean.to(tl.float32))
    if weight_ptr is not None:
        h_scale = tl.full((), 1.0, tl.float32)
        if HALF:
            # float16 has few exponents, so inverse_a H_ab inverse_b, 2 `bound` at most, is brought
            # to the upper end of them. A power of two rounds nothing: the largest one that `bound`
            # times it is no more than 2^14, and that leaves the gradient's factor a normal number.
            inverse = tl.max(longest, 0).to(tl.float64)
            bound = tl.max(largest, 0) * inverse * inverse
            bits = tl.maximum(bound, 2.0**-74).to(tl.int64, bitcast=True)
            below = ((bits & 0xFFFFFFFFFFFFF) != 0).to(tl.int64)
            exponent = 14 - ((bits >> 52) - 1023) - below
            h_scale = ((exponent + 127) << 23).to(tl.int32).to(tl.float32, bitcast=True)
        tl.store(h_scale_ptr, h_scale)
        factor = 1.0 / (at_least_one * temperature * h_scale.to(tl.float64))
        tl.store(factor_ptr, tl.where(count > 0.0, factor, 0.0).to(tl.float32))


def finish(
    batch: Batch,
    loss: Tensor,  # [padded L] float64
    c: Tensor | None,  # [padded L] float64
    total: Tensor,  # [padded L] float64
    top: Tensor,  # [padded L]
    want_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:  # [], [padded L] or None, [2]
    """The loss; and the rows' weights, H's scale and the gradient's factor.

    With `c` the loss is a mean over pairs. Without, over rows, and `loss` has the sums of their
    positives' logits.
    """
    rows = batch.rows
    value = torch.empty((), dtype=torch.float32, device=loss.device)
    weight = torch.empty_like(top) if want_grad else None
    numbers = torch.empty(2, dtype=torch.float32, device=loss.device)
    _finish_rows_kernel[(1,)](
        loss_ptr=loss,
        c_ptr=c,
        sum_ptr=total,
        max_ptr=top,
        begin_ptr=rows.begin,
        end_ptr=rows.end,
        inverse_ptr=rows.inverse,
        value_ptr=value,
        weight_ptr=weight,
        h_scale_ptr=numbers[:1],
        factor_ptr=numbers[1:],
        padded_rows=rows.padded_rows,
        temperature=batch.temperature,
        OVER_PAIRS=c is not None,
        HALF=rows.scaled.dtype == torch.float16,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return value, weight, numbers
