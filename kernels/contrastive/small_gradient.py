"""The second kernel of a small contrastive batch: the loss, and the gradient through the norm.

A program has a tile of rows and of columns of the gradient. It makes H from the similarities and
from what is known of both rows, and H Z from H. What the normalisation takes away of it along z_a
is sum_b H_ab z_a . z_b, which the similarities tell: no program waits for the others' columns.
"""

import triton
import triton.language as tl

from mcr_fast.kernels.contrastive.rows import MAX_INVERSE_NORM
from mcr_fast.kernels.contrastive.small_rows import (
    NT_XENT,
    Given,
    load_tile,
    marks_of,
    scratch_at,
)
from mcr_fast.kernels.math import LN2, exp2, reciprocal


@triton.jit
def _sum_of(ptr, padded_rows, BLOCK: tl.constexpr):
    """The sum of a number of each row, in one order."""
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, padded_rows, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(ptr + at, mask=at < padded_rows, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit
def _entries(scratch, s, rows, cols, same, KIND: tl.constexpr, PRECISE: tl.constexpr):
    """H off the diagonal, [BLOCK_M, BLOCK_N]."""
    e_a = exp2(s - tl.load(scratch.top + rows)[:, None], PRECISE)
    e_b = exp2(s - tl.load(scratch.top + cols)[None, :], PRECISE)
    h = tl.load(scratch.weight + rows)[:, None] * e_a
    h += tl.load(scratch.weight + cols)[None, :] * e_b
    share, col_share = tl.load(scratch.share + rows), tl.load(scratch.share + cols)
    if KIND == NT_XENT:
        # sigma = 1 / (1 + 2^-x), 0 where that power is infinite
        odds = exp2(s - share[:, None], PRECISE)
        col_odds = exp2(s - col_share[None, :], PRECISE)
        positive = -reciprocal(1.0 + odds, PRECISE) - reciprocal(1.0 + col_odds, PRECISE)
        return tl.where(same, positive, h)
    return h - tl.where(same, share[:, None] + col_share[None, :], 0.0)


@triton.jit
def _products(
    given,
    scratch,
    rows,
    columns,
    real,
    label,
    padded_rows,
    KIND: tl.constexpr,
    PRECISE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # [BLOCK_M, BLOCK_D], [BLOCK_M]
    """Columns of H Z, and the sum of H_ab s_ab."""
    g = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    along = tl.zeros(rows.shape, tl.float32)
    for first in range(0, padded_rows, BLOCK_N):
        cols = first + tl.arange(0, BLOCK_N)
        col_real, col_label = marks_of(given, cols)
        s = tl.load(scratch.s + rows[:, None] * padded_rows + cols[None, :])
        same = label[:, None] == col_label[None, :]
        h = _entries(scratch, s, rows, cols, same, KIND, PRECISE)
        pair = real[:, None] & col_real[None, :] & (rows[:, None] != cols[None, :])
        h = tl.where(pair, h, 0.0)
        along += tl.sum(h * s, 1)
        x = load_tile(given, cols, columns, col_real) * tl.load(scratch.scale + cols)[:, None]
        h *= tl.load(scratch.inverse + cols)[None, :]
        # three products of tf32 parts: float32 up to its last bit or two, on tensor cores
        g = tl.dot(h, x, g, input_precision="tf32x3")
    return g, along


@triton.jit
def _small_gradient_kernel(
    x_ptr,  # [L, D]
    labels_ptr,  # [N]
    present_ptr,  # [N, M] or None
    scratch_ptr,
    value_ptr,  # [], to fill
    grad_x_ptr,  # [L, D], to fill, or None
    x_row_stride,
    x_col_stride,
    present_row_stride,
    present_col_stride,
    num_rows,
    num_labels,
    padded_rows,
    width,
    log2_scale,  # log2(e) / temperature
    KIND: tl.constexpr,
    PRECISE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    scratch = scratch_at(scratch_ptr, padded_rows)
    terms = _sum_of(scratch.terms, padded_rows, BLOCK_S)
    any_term = terms > 0.0
    terms = tl.where(any_term, terms, 1.0)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        total = _sum_of(scratch.loss, padded_rows, BLOCK_S)
        tl.store(value_ptr, (total * LN2 / terms).to(tl.float32))
    if grad_x_ptr is not None:
        given = Given(
            x_ptr, labels_ptr, present_ptr, x_row_stride, x_col_stride,
            present_row_stride, present_col_stride, num_rows, num_labels, width,
        )  # fmt: skip
        rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        real, label = marks_of(given, rows)
        g, along = _products(
            given, scratch, rows, columns, real, label, padded_rows, KIND, PRECISE, BLOCK_N
        )
        inverse_norm = tl.load(scratch.inverse_norm + rows)
        to_z = tl.load(scratch.scale + rows)[:, None]
        z = load_tile(given, rows, columns, real) * to_z * tl.load(scratch.inverse + rows)[:, None]
        along = tl.where(inverse_norm == MAX_INVERSE_NORM, 0.0, along / log2_scale)
        # 1 / temperature over the terms
        factor = (1.0 / terms * log2_scale * LN2).to(tl.float32) * inverse_norm
        grad = tl.where(real[:, None], factor[:, None] * (g - along[:, None] * z), 0.0)
        inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
        at = rows.to(tl.int64)[:, None] * width + columns[None, :]
        # a batch without a pair may hold what is not finite
        tl.store(grad_x_ptr + at, tl.where(any_term, grad, 0.0), mask=inside)
