"""The first kernel of a small contrastive batch: similarities, sums over rows, parts of the loss.

A program has a tile of rows. It compares labels where it meets them, so nothing is sorted; it keeps
its similarities in memory, where the passes over a row after the first find them.
"""

import triton
import triton.language as tl

from mcr_fast.kernels.contrastive.small_rows import (
    NT_XENT,
    Given,
    load_tile,
    marks_of,
    norms_of,
    scratch_at,
)
from mcr_fast.kernels.math import exp2, log2_1p, reciprocal


@triton.jit
def _product(
    given,
    rows,
    cols,
    real,
    col_real,
    scale,
    col_scale,
    DOT_PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # [BLOCK_M, BLOCK_N]
    """x'_a . x'_b."""
    product = tl.zeros([rows.shape[0], cols.shape[0]], tl.float32)
    for first in range(0, given.width, BLOCK_K):
        columns = first + tl.arange(0, BLOCK_K)
        a = load_tile(given, rows, columns, real) * scale[:, None]
        b = load_tile(given, cols, columns, col_real) * col_scale[:, None]
        product = tl.dot(a, tl.trans(b), product, input_precision=DOT_PRECISION)
    return product


@triton.jit
def _kinds(given, rows, cols, real, label, KIND: tl.constexpr):
    """Which pairs are summed, and which are positive, [BLOCK_M, BLOCK_N] each."""
    col_real, col_label = marks_of(given, cols)
    both = real[:, None] & col_real[None, :]
    other = both & (rows[:, None] != cols[None, :])
    same = label[:, None] == col_label[None, :]
    if KIND == NT_XENT:
        return both & ~same, other & same
    return other, other & same


@triton.jit
def _log2_of(total, PRECISE: tl.constexpr):
    """log2 of a sum in float32, 0 for none; of one near 1 all digits are right."""
    x = tl.where(total == 0.0, 1.0, total).to(tl.float32)
    bits = x.to(tl.int32, bitcast=True)
    exponent = ((bits >> 23) - 127).to(tl.float32)
    mantissa = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    # what is NaN stays so
    return tl.where(x == x, exponent + log2_1p(mantissa - 1.0, PRECISE), x)


@triton.jit
def _anchors(total, positives, count, top, PRECISE: tl.constexpr):
    """Of sup_con: a row's loss in units of log2, 1 / E_a, 1 / |P(a)|, and whether it has one."""
    is_anchor = count > 0
    num_positives = tl.maximum(count, 1)
    # the two large parts of a loss, a positive's logit and the maximum, cancel in float64
    large = top.to(tl.float64) - positives / num_positives
    loss = tl.where(is_anchor, _log2_of(total, PRECISE).to(tl.float64) + large, 0.0)
    weight = tl.where(is_anchor, 1.0 / tl.where(is_anchor, total, 1.0), 0.0)
    share = tl.where(is_anchor, 1.0 / num_positives.to(tl.float32), 0.0)
    return loss, weight, share, is_anchor


@triton.jit
def _pairs(given, s_ptrs, rows, real, label, log2_sum, padded_rows, PRECISE, BLOCK_N: tl.constexpr):
    """Of nt_xent: a row's loss in units of log2, the sum of sigma, and its positives."""
    loss = tl.zeros(rows.shape, tl.float64)
    c = tl.zeros(rows.shape, tl.float64)
    count = tl.zeros(rows.shape, tl.int32)
    for first in range(0, padded_rows, BLOCK_N):
        cols = first + tl.arange(0, BLOCK_N)
        _, positive = _kinds(given, rows, cols, real, label, NT_XENT)
        x = log2_sum[:, None] - tl.load(s_ptrs + cols[None, :])
        t = exp2(-tl.abs(x), PRECISE)
        sigma = tl.where(x >= 0.0, 1.0, t) * reciprocal(1.0 + t, PRECISE)
        # maximum would turn NaN into 0
        term = tl.where(x <= 0.0, 0.0, x) + log2_1p(t, PRECISE)
        loss += tl.sum(tl.where(positive, term, 0.0), 1).to(tl.float64)
        c += tl.sum(tl.where(positive, sigma, 0.0), 1).to(tl.float64)
        count += tl.sum(positive.to(tl.int32), 1)
    return loss, c, count


@triton.jit
def _sums(given, s_ptrs, rows, real, label, top, padded_rows, KIND, PRECISE, BLOCK_N: tl.constexpr):
    """Of what is summed the exponentials, of positives the similarities and the number."""
    total = tl.zeros(rows.shape, tl.float64)
    positives = tl.zeros(rows.shape, tl.float64)
    count = tl.zeros(rows.shape, tl.int32)
    for first in range(0, padded_rows, BLOCK_N):
        cols = first + tl.arange(0, BLOCK_N)
        s = tl.load(s_ptrs + cols[None, :])
        summed, positive = _kinds(given, rows, cols, real, label, KIND)
        e = tl.where(summed, exp2(s - top[:, None], PRECISE), 0.0)
        total += tl.sum(e, 1).to(tl.float64)
        positives += tl.sum(tl.where(positive, s, 0.0), 1).to(tl.float64)
        count += tl.sum(positive.to(tl.int32), 1)
    return total, positives, count


@triton.jit
def _similarities(
    given,
    scratch,
    rows,
    real,
    label,
    padded_rows,
    log2_scale,
    KIND: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # [BLOCK_M]
    """Leaves the rows' norms and similarities; the largest of those that are summed."""
    scale, inverse, inverse_norm = norms_of(given, rows, real, BLOCK_K)
    tl.store(scratch.scale + rows, scale)
    tl.store(scratch.inverse + rows, inverse)
    tl.store(scratch.inverse_norm + rows, inverse_norm)
    top = tl.full(rows.shape, float("-inf"), tl.float32)
    for first in range(0, padded_rows, BLOCK_N):
        cols = first + tl.arange(0, BLOCK_N)
        col_real, _ = marks_of(given, cols)
        col_scale, col_inverse, _ = norms_of(given, cols, col_real, BLOCK_K)
        product = _product(
            given, rows, cols, real, col_real, scale, col_scale, DOT_PRECISION, BLOCK_K
        )
        s = product * (inverse * log2_scale)[:, None] * col_inverse[None, :]
        tl.store(scratch.s + rows[:, None] * padded_rows + cols[None, :], s)
        summed, _ = _kinds(given, rows, cols, real, label, KIND)
        top = tl.maximum(top, tl.max(tl.where(summed, s, float("-inf")), 1))
    # where nothing is summed, the bound keeps the exponentials in range
    return tl.where(top == float("-inf"), log2_scale, top)


@triton.jit
def _small_sums_kernel(
    x_ptr,  # [L, D]
    labels_ptr,  # [N]
    present_ptr,  # [N, M] or None
    scratch_ptr,
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
    DOT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    given = Given(
        x_ptr, labels_ptr, present_ptr, x_row_stride, x_col_stride,
        present_row_stride, present_col_stride, num_rows, num_labels, width,
    )  # fmt: skip
    scratch = scratch_at(scratch_ptr, padded_rows)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    real, label = marks_of(given, rows)
    top = _similarities(
        given, scratch, rows, real, label, padded_rows, log2_scale,
        KIND, DOT_PRECISION, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    tl.store(scratch.top + rows, top)
    # other threads than those that stored the similarities load them
    tl.debug_barrier()
    s_ptrs = scratch.s + rows[:, None] * padded_rows
    total, positives, count = _sums(
        given, s_ptrs, rows, real, label, top, padded_rows, KIND, PRECISE, BLOCK_N
    )
    if KIND == NT_XENT:
        log2_sum = tl.where(total == 0.0, float("-inf"), _log2_of(total, PRECISE) + top)
        loss, c, terms = _pairs(
            given, s_ptrs, rows, real, label, log2_sum, padded_rows, PRECISE, BLOCK_N
        )
        weight = c / tl.where(total == 0.0, 1.0, total)
        share = log2_sum
    else:
        loss, weight, share, terms = _anchors(total, positives, count, top, PRECISE)
    tl.store(scratch.weight + rows, weight.to(tl.float32))
    tl.store(scratch.share + rows, share)
    tl.store(scratch.loss + rows, loss.to(tl.float32))
    tl.store(scratch.terms + rows, terms.to(tl.float32))
