"""Row sums of the exponentials of a contrastive batch, the only pass over the whole triangle.

Exponentials are taken relative to the bound s <= log2(e) / temperature of any logit, or at a very
small temperature relative to each row's own maximum (RUNNING_MAX). A tile above the diagonal serves
its rows and its columns; it leaves partial sums that a second kernel adds up in order: no atomics,
the same bits every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast.kernels.config import PRECISE, choose
from mcr_fast.kernels.contrastive.batch import Batch, Vectors, logit_tile
from mcr_fast.kernels.math import exp2, log2_of_double

# Row tiles whose partial sums are kept at once: of 128 rows, 512 bytes for a row of the batch.
_BAND_TILES = 64


@triton.jit
def _exp_sums_kernel(
    scaled_ptr,  # [padded L, padded D]
    inverse_ptr,  # [padded L]
    enter_ptr,  # [padded L]: row a counts the columns b >= enter[a]
    num_present_ptr,  # [1]
    row_sum_ptr,  # [column tiles of the band, band_rows]
    row_max_ptr,  # same
    col_sum_ptr,  # [row tiles of the band, padded L]
    col_max_ptr,  # same
    first_row,
    band_rows,
    padded_rows,
    width,
    scale,
    RUNNING_MAX: tl.constexpr,
    PRECISE: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    num_present = tl.load(num_present_ptr)
    first = first_row + tl.program_id(0) * BLOCK_M
    first_col = first_row + tl.program_id(1) * BLOCK_N
    if (first_col + BLOCK_N <= first) | (tl.maximum(first, first_col) >= num_present):
        return
    vectors = Vectors(scaled_ptr, inverse_ptr, width, scale)
    s = logit_tile(vectors, first, first_col, DOT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
    rows = first + tl.arange(0, BLOCK_M)
    cols = first_col + tl.arange(0, BLOCK_N)
    enter = tl.load(enter_ptr + rows)
    counted = (cols[None, :] >= enter[:, None]) & (cols < num_present)[None, :]
    in_band = tl.program_id(1).to(tl.int64) * band_rows + rows - first_row
    in_batch = tl.program_id(0).to(tl.int64) * padded_rows + cols
    if RUNNING_MAX:
        kept = tl.where(counted, s, -4.0 * scale)
        row_max = tl.max(kept, 1)
        col_max = tl.max(kept, 0)
        for_row = tl.where(counted, exp2(s - row_max[:, None], PRECISE), 0.0)
        for_col = tl.where(counted, exp2(s - col_max[None, :], PRECISE), 0.0)
        tl.store(row_max_ptr + in_band, row_max)
        tl.store(col_max_ptr + in_batch, col_max)
        tl.store(row_sum_ptr + in_band, tl.sum(for_row, 1))
        tl.store(col_sum_ptr + in_batch, tl.sum(for_col, 0))
    else:
        e = exp2(s - scale, PRECISE)
        # enter never falls, so its last entry tells whether the whole tile counts
        last_enter = tl.load(enter_ptr + first + BLOCK_M - 1)
        if (last_enter > first_col) | (first_col + BLOCK_N > num_present):
            e = tl.where(counted, e, 0.0)
        tl.store(row_sum_ptr + in_band, tl.sum(e, 1))
        tl.store(col_sum_ptr + in_batch, tl.sum(e, 0))


@triton.jit
def add_slots(
    sum_ptrs,  # [SLOTS, BLOCK_R]
    max_ptrs,  # same
    kept,  # [SLOTS, 1]
    total,  # [BLOCK_R] float64
    top,  # [BLOCK_R]
    no_max,
    RUNNING_MAX: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """Adds some partial sums of each row to its total, relative to the largest maximum so far."""
    sums = tl.load(sum_ptrs, mask=kept, other=0.0)
    if RUNNING_MAX:
        maxima = tl.load(max_ptrs, mask=kept, other=no_max)
        raised = tl.maximum(top, tl.max(maxima, 0))
        total *= exp2(top - raised, PRECISE).to(tl.float64)
        sums *= exp2(maxima - raised[None, :], PRECISE)
        top = raised
    return total + tl.sum(sums.to(tl.float64), 0), top


@triton.jit
def _add_partials_kernel(
    row_sum_ptr,  # [column tiles of the band, band_rows]
    row_max_ptr,  # same
    col_sum_ptr,  # [row tiles of the band, padded L]
    col_max_ptr,  # same
    num_present_ptr,  # [1]
    sum_ptr,  # [padded L] float64
    max_ptr,  # [padded L]
    log2_ptr,  # [padded L]
    first_row,
    band_rows,
    padded_rows,
    scale,
    RUNNING_MAX: tl.constexpr,
    PRECISE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SLOTS: tl.constexpr,
):
    # BLOCK_R divides both sides of a tile, so a program's rows share their tiles
    num_present = tl.load(num_present_ptr).to(tl.int32)
    offset = tl.program_id(0) * BLOCK_R
    live = first_row + offset < num_present
    rows = first_row + offset + tl.arange(0, BLOCK_R)
    slots = tl.arange(0, SLOTS)
    no_max = -4.0 * scale if RUNNING_MAX else scale
    begun = rows * 0 + first_row > 0
    total = tl.load(sum_ptr + rows, mask=begun, other=0.0)
    top = tl.load(max_ptr + rows, mask=begun, other=no_max)

    # as columns: the band's row tiles that start above the last column of theirs
    stop = tl.minimum((offset // BLOCK_N + 1) * BLOCK_N, num_present - first_row)
    stop = tl.where(live, tl.cdiv(tl.minimum(stop, band_rows), BLOCK_M), 0)
    for tile in range(0, stop, SLOTS):
        slot = (tile + slots)[:, None]
        at = slot.to(tl.int64) * padded_rows + rows[None, :]
        total, top = add_slots(
            col_sum_ptr + at, col_max_ptr + at, slot < stop, total, top, no_max,
            RUNNING_MAX, PRECISE,
        )  # fmt: skip
    # as rows of the band: the column tiles from the diagonal on
    if offset < band_rows:
        start = offset // BLOCK_M * BLOCK_M // BLOCK_N
        stop = tl.where(live, tl.cdiv(num_present - first_row, BLOCK_N), 0)
        for tile in range(start, stop, SLOTS):
            slot = (tile + slots)[:, None]
            at = slot.to(tl.int64) * band_rows + rows[None, :] - first_row
            total, top = add_slots(
                row_sum_ptr + at, row_max_ptr + at, slot < stop, total, top, no_max,
                RUNNING_MAX, PRECISE,
            )  # fmt: skip
        # No band follows that adds to these. Where nothing counted there is no maximum; the bound
        # keeps the exponentials in range.
        top = tl.where(total > 0.0, top, scale)
        log2_sum = log2_of_double(total) + top.to(tl.float64)
        tl.store(log2_ptr + rows, log2_sum.to(tl.float32))
    tl.store(sum_ptr + rows, total)
    tl.store(max_ptr + rows, top)


def exp_sums(
    batch: Batch,
) -> tuple[Tensor, Tensor, Tensor]:  # [padded L] float64, [padded L] float32, [padded L] float32
    """Each row's sum of 2^(s_ab - max_a), over b >= enter[a] and over a >= enter[b]; max_a, log2.

    The last is the logarithm of the sum of 2^s_ab.
    """
    rows, blocks = batch.rows, batch.triangle.blocks
    block_m, block_n, padded = blocks["BLOCK_M"], blocks["BLOCK_N"], rows.padded_rows
    band_rows = min(padded, _BAND_TILES * max(block_m, block_n))
    total = rows.per_row(torch.float64)
    top, log2_sum = rows.per_row(torch.float32), rows.per_row(torch.float32)
    kinds = 2 if batch.running_max else 1
    of_rows = rows.inverse.new_empty((kinds, padded // block_n, band_rows))
    of_cols = rows.inverse.new_empty((kinds, band_rows // block_m, padded))
    for first_row in range(0, padded, band_rows):
        partials = {
            "row_sum_ptr": of_rows[0],
            "row_max_ptr": of_rows[-1],
            "col_sum_ptr": of_cols[0],
            "col_max_ptr": of_cols[-1],
            "first_row": first_row,
            "band_rows": band_rows,
            "padded_rows": padded,
            "RUNNING_MAX": batch.running_max,
        }
        below = padded - first_row
        grid = (min(band_rows, below) // block_m, below // block_n)
        _exp_sums_kernel[grid](enter_ptr=rows.enter, **partials, **batch.tiles(batch.triangle))
        config = choose("partial_sums", padded)
        _add_partials_kernel[(below // config.blocks["BLOCK_R"],)](
            num_present_ptr=rows.num_present,
            sum_ptr=total,
            max_ptr=top,
            log2_ptr=log2_sum,
            scale=batch.scale,
            PRECISE=PRECISE,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            **partials,
            **config.launch(),
        )
    return total, top, log2_sum
