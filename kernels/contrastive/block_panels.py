"""H U of a block: panels of H, rows by columns, times the columns as they are laid out.

H is stored with 1 / |x'| of its columns, so that a library product with x' in the dtype of the
input gives H U. Its entries are weighted exponentials, but for the few tiles that hold positives,
which a second kernel puts in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast.kernels.config import PRECISE, choose
from mcr_fast.kernels.contrastive import panels
from mcr_fast.kernels.contrastive.batch import (
    Vectors,
    class_columns,
    logits_between,
    same_label,
    within,
)
from mcr_fast.kernels.contrastive.block import BLOCK, Block
from mcr_fast.kernels.contrastive.rows import Rows
from mcr_fast.kernels.math import LOG2E, exp2, reciprocal


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


@triton.jit
def _entries(
    s, weight_ptr, col_weight_ptr, rows, cols, scale,
    RUNNING_MAX: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """weight_a e^s' + weight_b e^s'; each weight in its own power with RUNNING_MAX."""
    if RUNNING_MAX:
        e_a = exp2((s - scale) + tl.load(weight_ptr + rows)[:, None], PRECISE)
        return e_a + exp2((s - scale) + tl.load(col_weight_ptr + cols)[None, :], PRECISE)
    else:
        e = exp2(s - scale, PRECISE)
        # vectors loaded before they are wanted take registers; no load moves up past a barrier
        tl.debug_barrier()
        weight_a = tl.load(weight_ptr + rows)[:, None]
        return (weight_a + tl.load(col_weight_ptr + cols)[None, :]) * e


@triton.jit
def _as_stored(h, col_inverse_ptr, cols, h_scale_ptr, RUNNING_MAX: tl.constexpr):
    """Entries of H as the product takes them; 0 of columns that are not there."""
    inverse = tl.load(col_inverse_ptr + cols)
    if RUNNING_MAX:  # powers of such columns may be infinite
        h = tl.where((inverse == 0.0)[None, :], 0.0, h)
    if h_scale_ptr is not None:
        inverse *= tl.load(h_scale_ptr)
    return h * inverse[None, :]


@triton.jit
def _block_panel_kernel(
    scaled_ptr,  # [padded R, padded D]
    inverse_ptr,  # [padded R]
    num_present_ptr,  # [1]
    col_scaled_ptr,  # [padded Q, padded D]
    col_inverse_ptr,  # [padded Q]
    num_columns_ptr,  # [1]
    weight_ptr,  # [padded R]
    col_weight_ptr,  # [padded Q]
    h_scale_ptr,  # [1]; None: 1
    h_ptr,  # [panel rows, panel_cols], a panel of H from first_row and first_col on
    first_row,
    first_col,
    panel_cols,
    width,
    scale,
    RUNNING_MAX: tl.constexpr,
    PRECISE: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    top = first_row + tl.program_id(0) * BLOCK_M
    left = first_col + tl.program_id(1) * BLOCK_N
    rows = top + tl.arange(0, BLOCK_M)
    cols = left + tl.arange(0, BLOCK_N)
    # Columns that are not there become 0, as their inverse is: the product reads them. Rows that
    # are not there are left out of it afterwards.
    there = (top < tl.load(num_present_ptr)) & (left < tl.load(num_columns_ptr))
    width = tl.where(there, width, 0)
    s = logits_between(
        Vectors(scaled_ptr, inverse_ptr, width, scale),
        Vectors(col_scaled_ptr, col_inverse_ptr, width, scale),
        top, left, DOT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    h = _entries(s, weight_ptr, col_weight_ptr, rows, cols, scale, RUNNING_MAX, PRECISE)
    tl.debug_barrier()
    h = _as_stored(h, col_inverse_ptr, cols, h_scale_ptr, RUNNING_MAX).to(h_ptr.dtype.element_ty)
    rows, cols = (rows - first_row).to(tl.int64), (cols - first_col).to(tl.int64)
    tl.store(h_ptr + rows[:, None] * panel_cols + cols[None, :], h)


@triton.jit
def _block_positives_kernel(
    scaled_ptr,  # [padded R, padded D]
    inverse_ptr,  # [padded R]
    num_present_ptr,  # [1]
    col_scaled_ptr,  # [padded Q, padded D]
    col_inverse_ptr,  # [padded Q]
    begin_ptr,  # [padded R]
    end_ptr,  # [padded R]
    own_ptr,  # [padded R]
    weight_ptr,  # [padded R]
    col_weight_ptr,  # [padded Q]
    other_ptr,  # [padded R]
    col_other_ptr,  # [padded Q]
    h_scale_ptr,  # [1]; None: 1
    h_ptr,  # [panel rows, panel_cols], a panel of H from first_row and first_col on
    first_row,
    first_col,
    panel_cols,
    width,
    scale,
    OVER_PAIRS: tl.constexpr,
    RUNNING_MAX: tl.constexpr,
    PRECISE: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    first = first_row + tl.program_id(0) * BLOCK_M
    of_class = class_columns(begin_ptr, end_ptr, num_present_ptr, first, BLOCK_M, BLOCK_N)
    rows = of_class.rows
    own = tl.load(own_ptr + rows)[:, None]
    other_a = tl.load(other_ptr + rows)[:, None]
    row_ptrs = h_ptr + (rows - first_row).to(tl.int64)[:, None] * panel_cols
    columns = within(of_class, first_col, panel_cols)
    for tile_col in range(columns.low, columns.high, BLOCK_N):
        s = logits_between(
            Vectors(scaled_ptr, inverse_ptr, width, scale),
            Vectors(col_scaled_ptr, col_inverse_ptr, width, scale),
            first, tile_col, DOT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        cols = tile_col + tl.arange(0, BLOCK_N)
        other_b = tl.load(col_other_ptr + cols)[None, :]
        if OVER_PAIRS:
            # sigma = 1 / (1 + 2^-x), 0 where that power is infinite
            h = -reciprocal(1.0 + exp2((s - scale) - other_a, PRECISE), PRECISE)
            h -= reciprocal(1.0 + exp2((s - scale) - other_b, PRECISE), PRECISE)
        else:
            h = _entries(s, weight_ptr, col_weight_ptr, rows, cols, scale, RUNNING_MAX, PRECISE)
            h -= other_a + other_b
        h = tl.where(cols[None, :] == own, 0.0, h)
        h = _as_stored(h, col_inverse_ptr, cols, h_scale_ptr, RUNNING_MAX)
        h_ptrs = row_ptrs + (cols - first_col)[None, :]
        tl.store(h_ptrs, h.to(h_ptr.dtype.element_ty), mask=same_label(of_class, cols))


@triton.jit
def _unsort_kernel(
    g_ptr,  # [padded R, padded D] float32
    order_ptr,  # [R]
    num_present_ptr,  # [1]
    h_scale_ptr,  # [1]; None: 1
    made_ptr,  # [R, D]
    num_rows,
    width,
    padded_width,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = rows < num_rows
    present = (rows < tl.load(num_present_ptr))[:, None]
    to_row = tl.load(order_ptr + rows, mask=inside, other=0)[:, None]
    g_ptrs = g_ptr + rows.to(tl.int64)[:, None] * padded_width
    for first in range(0, width, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D).to(tl.int64)[None, :]
        g = tl.load(g_ptrs + d, mask=present & (d < width), other=0.0)
        if h_scale_ptr is not None:
            g /= tl.load(h_scale_ptr)
        tl.store(made_ptr + to_row * width + d, g, mask=inside[:, None] & (d < width))


def _panels(block: Block) -> tuple[int, int]:
    """Rows and columns of a panel of H, at most."""
    blocks, itemsize = block.every.blocks, block.rows.scaled.element_size()
    step = max(blocks["BLOCK_M"], blocks["BLOCK_N"])
    rows = panels._panel_side(block.rows.padded_rows, step, itemsize)
    most = max(step, panels._PANEL_BYTES // (itemsize * rows) // step * step)
    return rows, min(most, block.columns.padded_rows)


def weighted_columns(
    block: Block,
    of_rows: Statistics,
    of_columns: Statistics,
    over_pairs: bool,
) -> Tensor:  # [R, D] float32
    """H U, of the rows as they were given."""
    rows, columns, blocks = block.rows, block.columns, block.every.blocks
    stats: dict[str, Any] = {"weight_ptr": of_rows.weight, "col_weight_ptr": of_columns.weight}
    others: dict[str, Any] = {"other_ptr": of_rows.other, "col_other_ptr": of_columns.other}
    near = block.tiles(block.near) | block.places() | others
    h_scale = None
    if rows.scaled.dtype == torch.float16:
        h_scale = rows.inverse.new_empty(1)
        _half_scale_kernel[(1,)](
            **stats,
            **others,
            col_inverse_ptr=columns.inverse,
            h_scale_ptr=h_scale,
            padded_rows=rows.padded_rows,
            padded_columns=columns.padded_rows,
            OVER_PAIRS=over_pairs,
            RUNNING_MAX=block.running_max,
            PRECISE=PRECISE,
            BLOCK=1024,
            num_warps=8,
        )
    g = rows.scaled.new_empty(rows.scaled.shape, dtype=torch.float32)
    most_rows, most_cols = _panels(block)
    memory = rows.scaled.new_empty(most_rows * most_cols)
    for first_row in range(0, rows.padded_rows, most_rows):
        num_rows = min(most_rows, rows.padded_rows - first_row)
        for first_col in range(0, columns.padded_rows, most_cols):
            num_cols = min(most_cols, columns.padded_rows - first_col)
            panel = memory[: num_rows * num_cols].view(num_rows, num_cols)
            given = {
                **stats,
                "h_scale_ptr": h_scale,
                "h_ptr": panel,
                "first_row": first_row,
                "first_col": first_col,
                "panel_cols": num_cols,
                "RUNNING_MAX": block.running_max,
            }
            grid = (num_rows // blocks["BLOCK_M"], num_cols // blocks["BLOCK_N"])
            _block_panel_kernel[grid](
                num_columns_ptr=columns.num_present, **given, **block.tiles(block.every)
            )
            _block_positives_kernel[(num_rows // block.near.blocks["BLOCK_M"],)](
                OVER_PAIRS=over_pairs, **given, **near
            )
            of_rows_here = slice(first_row, first_row + num_rows)
            x = columns.scaled[first_col : first_col + num_cols]
            panels.add_product(g[of_rows_here], panel, x, first=first_col == 0)
    return _unsorted(rows, g, h_scale)


def _unsorted(
    rows: Rows,
    g: Tensor,  # [padded R, padded D] float32
    h_scale: Tensor | None,  # [1]
) -> Tensor:  # [R, D] float32
    made = g.new_empty(rows.embeddings.shape)
    config = choose("rows", made.shape[1])
    _unsort_kernel[(triton.cdiv(len(made), config.blocks["BLOCK_R"]),)](
        g_ptr=g,
        order_ptr=rows.order,
        num_present_ptr=rows.num_present,
        h_scale_ptr=h_scale,
        made_ptr=made,
        num_rows=len(made),
        width=made.shape[1],
        padded_width=rows.padded_width,
        **config.launch(),
    )
    return made
