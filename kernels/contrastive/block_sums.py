"""Sums of exponentials of rows over a block's columns, and over its positives.

A tile leaves a partial sum for each of its rows, which a second kernel adds up in order: no
atomics, the same bits every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast.kernels.config import PRECISE, choose
from mcr_fast.kernels.contrastive.batch import (
    Vectors,
    class_columns,
    logits_between,
    same_label,
)
from mcr_fast.kernels.contrastive.block import Block
from mcr_fast.kernels.contrastive.exp_sums import add_slots
from mcr_fast.kernels.math import LN2, LOG2E, exp2, log2_1p, log2_of_double

# Partial sums that are kept at once: 64 MB, twice that with maxima.
_PARTIALS = 1 << 24
_MOST_BANDS = (1 << 16) - 1  # of programs along a grid's second axis


@triton.jit
def _counted(
    begin_ptr, end_ptr, own_ptr, rows, left, num_columns,
    PAST_CLASS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Which columns from `left` on enter which rows' sums."""
    cols = (left + tl.arange(0, BLOCK_N))[None, :]
    if PAST_CLASS:
        before = cols < tl.load(begin_ptr + rows)[:, None]
        counted = before | (cols >= tl.load(end_ptr + rows)[:, None])
    else:
        counted = cols != tl.load(own_ptr + rows)[:, None]
    return counted & (cols < num_columns)


@triton.jit
def _block_sums_kernel(
    scaled_ptr,  # [padded R, padded D]
    inverse_ptr,  # [padded R]
    num_present_ptr,  # [1]
    col_scaled_ptr,  # [padded Q, padded D]
    col_inverse_ptr,  # [padded Q]
    begin_ptr,  # [padded R]
    end_ptr,  # [padded R]
    own_ptr,  # [padded R]
    num_columns_ptr,  # [1]
    sum_ptr,  # [column tiles of the band, padded R]
    max_ptr,  # same
    first_col,  # of the band
    padded_rows,
    width,
    scale,
    PAST_CLASS: tl.constexpr,  # columns of the row's label do not count; else only its own
    RUNNING_MAX: tl.constexpr,
    PRECISE: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    first = tl.program_id(0) * BLOCK_M
    left = first_col + tl.program_id(1) * BLOCK_N
    num_columns = tl.load(num_columns_ptr)
    if (first >= tl.load(num_present_ptr)) | (left >= num_columns):
        return
    s = logits_between(
        Vectors(scaled_ptr, inverse_ptr, width, scale),
        Vectors(col_scaled_ptr, col_inverse_ptr, width, scale),
        first, left, DOT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    rows = first + tl.arange(0, BLOCK_M)
    at = tl.program_id(1).to(tl.int64) * padded_rows + rows
    if RUNNING_MAX:
        counted = _counted(
            begin_ptr, end_ptr, own_ptr, rows, left, num_columns, PAST_CLASS, BLOCK_N
        )
        row_max = tl.max(tl.where(counted, s, -4.0 * scale), 1)
        tl.store(max_ptr + at, row_max)
        e = tl.where(counted, exp2(s - row_max[:, None], PRECISE), 0.0)
    else:
        e = exp2(s - scale, PRECISE)
        low = tl.load((begin_ptr if PAST_CLASS else own_ptr) + rows)
        high = tl.load((end_ptr if PAST_CLASS else own_ptr) + rows)
        apart = (tl.max(high, 0) < left) | (tl.min(low, 0) >= left + BLOCK_N)
        if (not apart) | (left + BLOCK_N > num_columns):
            counted = _counted(
                begin_ptr, end_ptr, own_ptr, rows, left, num_columns, PAST_CLASS, BLOCK_N
            )
            e = tl.where(counted, e, 0.0)
    tl.store(sum_ptr + at, tl.sum(e, 1))


@triton.jit
def _log_sums_kernel(
    sum_ptr,  # [column tiles of the band, padded R]
    max_ptr,  # same
    total_ptr,  # [padded R] float64, of the bands before
    top_ptr,  # [padded R]
    order_ptr,  # [R]
    num_present_ptr,  # [1]
    num_columns_ptr,  # [1]
    log_sum_ptr,  # [R], of the rows as they were given
    first_col,
    num_tiles,  # of the band
    num_rows,
    padded_rows,
    scale,
    RUNNING_MAX: tl.constexpr,
    PRECISE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SLOTS: tl.constexpr,
):
    offset = tl.program_id(0) * BLOCK_R
    rows = offset + tl.arange(0, BLOCK_R)
    num_present = tl.load(num_present_ptr)
    no_max = -4.0 * scale if RUNNING_MAX else scale
    begun = rows * 0 + first_col > 0
    total = tl.load(total_ptr + rows, mask=begun, other=0.0)
    top = tl.load(top_ptr + rows, mask=begun, other=no_max)
    stop = tl.cdiv(tl.load(num_columns_ptr).to(tl.int32) - first_col, BLOCK_N)
    stop = tl.where(offset < num_present, tl.minimum(stop, num_tiles), 0)
    for tile in range(0, stop, SLOTS):
        slot = (tile + tl.arange(0, SLOTS))[:, None]
        at = slot.to(tl.int64) * padded_rows + rows[None, :]
        total, top = add_slots(
            sum_ptr + at, max_ptr + at, slot < stop, total, top, no_max, RUNNING_MAX, PRECISE
        )
    tl.store(total_ptr + rows, total)
    tl.store(top_ptr + rows, top)
    # what another band adds to, it writes again
    inside = rows < num_rows
    log2_sum = log2_of_double(total) + (top - scale).to(tl.float64)
    log2_sum = tl.where(rows < num_present, log2_sum, -float("inf"))
    to_row = tl.load(order_ptr + rows, mask=inside, other=0)
    tl.store(log_sum_ptr + to_row, (log2_sum * LN2).to(tl.float32), mask=inside)


def log_sums(block: Block, past_class: bool) -> Tensor:  # [R] float32
    """Logarithms of the rows' sums of e^s', of the rows as they were given; -inf where none."""
    rows, columns, blocks = block.rows, block.columns, block.every.blocks
    padded, block_n = rows.padded_rows, blocks["BLOCK_N"]
    tiles = columns.padded_rows // block_n
    band = min(tiles, _MOST_BANDS, max(1, _PARTIALS // padded))
    partials = rows.inverse.new_empty((2 if block.running_max else 1, band, padded))
    total, top = rows.per_row(torch.float64), rows.per_row(torch.float32)
    made = rows.inverse.new_empty(len(rows.order))
    config = choose("partial_sums", padded)
    for first in range(0, tiles, band):
        given = {
            "num_columns_ptr": columns.num_present,
            "sum_ptr": partials[0],
            "max_ptr": partials[-1],
            "first_col": first * block_n,
            "padded_rows": padded,
            "RUNNING_MAX": block.running_max,
        }
        count = min(band, tiles - first)
        _block_sums_kernel[(padded // blocks["BLOCK_M"], count)](
            PAST_CLASS=past_class, **given, **block.places(), **block.tiles(block.every)
        )
        _log_sums_kernel[(padded // config.blocks["BLOCK_R"],)](
            total_ptr=total,
            top_ptr=top,
            order_ptr=rows.order,
            num_present_ptr=rows.num_present,
            log_sum_ptr=made,
            num_tiles=count,
            num_rows=len(made),
            scale=block.scale,
            PRECISE=PRECISE,
            BLOCK_N=block_n,
            **given,
            **config.launch(),
        )
    return made


@triton.jit
def _block_pairs_kernel(
    scaled_ptr,  # [padded R, padded D]
    inverse_ptr,  # [padded R]
    num_present_ptr,  # [1]
    col_scaled_ptr,  # [padded Q, padded D]
    col_inverse_ptr,  # [padded Q]
    begin_ptr,  # [padded R]
    end_ptr,  # [padded R]
    own_ptr,  # [padded R]
    order_ptr,  # [R]
    log_sum_ptr,  # [R], as given; None: sup_con
    loss_ptr,  # [R], likewise
    count_ptr,  # [R]
    log_weight_ptr,  # [R]; None: sup_con
    num_rows,
    width,
    scale,
    PRECISE: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    first = tl.program_id(0) * BLOCK_M
    of_class = class_columns(begin_ptr, end_ptr, num_present_ptr, first, BLOCK_M, BLOCK_N)
    rows = of_class.rows
    inside = rows < num_rows
    to_row = tl.load(order_ptr + rows, mask=inside, other=0)
    own = tl.load(own_ptr + rows)
    loss = tl.zeros([BLOCK_M], tl.float64)
    weight = tl.zeros([BLOCK_M], tl.float64)
    top = tl.zeros([BLOCK_M], tl.float32) - float("inf")
    base = tl.zeros([BLOCK_M], tl.float32)
    if log_sum_ptr is not None:
        log2_sum = tl.load(log_sum_ptr + to_row, mask=inside, other=0.0) * LOG2E
    for first_col in range(of_class.low, of_class.high, BLOCK_N):
        s = logits_between(
            Vectors(scaled_ptr, inverse_ptr, width, scale),
            Vectors(col_scaled_ptr, col_inverse_ptr, width, scale),
            first, first_col, DOT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        cols = first_col + tl.arange(0, BLOCK_N)
        positive = same_label(of_class, cols) & (cols[None, :] != own[:, None])
        term = scale - s  # -s'
        if log_sum_ptr is not None:
            x = term + log2_sum[:, None]
            # maximum would turn NaN into 0
            term_loss = tl.where(x <= 0.0, 0.0, x) + log2_1p(exp2(-tl.abs(x), PRECISE), PRECISE)
            # log2 of 1 / (e^s' + N')
            log = term - term_loss
            raised = tl.maximum(top, tl.max(tl.where(positive, log, -float("inf")), 1))
            base = tl.where(raised == -float("inf"), 0.0, raised)
            weight *= exp2(top - base, PRECISE).to(tl.float64)
            e = tl.where(positive, exp2(log - base[:, None], PRECISE), 0.0)
            weight += tl.sum(e, 1).to(tl.float64)
            top = raised
            term = term_loss
        loss += tl.sum(tl.where(positive, term, 0.0), 1).to(tl.float64)
    tl.store(loss_ptr + to_row, (loss * LN2).to(tl.float32), mask=inside)
    count = (of_class.end - of_class.begin).reshape([BLOCK_M]) - (own >= 0).to(tl.int32)
    tl.store(count_ptr + to_row, count.to(tl.float32), mask=inside)
    if log_weight_ptr is not None:
        log2_weight = log2_of_double(weight) + base.to(tl.float64)
        tl.store(log_weight_ptr + to_row, (log2_weight * LN2).to(tl.float32), mask=inside)


def pairs(
    block: Block,
    log_sum: Tensor | None,  # [R] float32; None: sup_con
) -> tuple[Tensor, Tensor, Tensor]:  # [R], [R], [R] or [0] float32
    """Of the rows' positives, in the order given: their loss, their number, log W of nt_xent."""
    rows = block.rows
    over_pairs = log_sum is not None
    loss, count = (rows.inverse.new_empty(len(rows.order)) for _ in range(2))
    log_weight = rows.inverse.new_empty(len(rows.order) if over_pairs else 0)
    _block_pairs_kernel[(rows.padded_rows // block.near.blocks["BLOCK_M"],)](
        order_ptr=rows.order,
        log_sum_ptr=log_sum,
        loss_ptr=loss,
        count_ptr=count,
        log_weight_ptr=log_weight if over_pairs else None,
        num_rows=len(rows.order),
        **block.places(),
        **block.tiles(block.near),
    )
    return loss, count, log_weight
