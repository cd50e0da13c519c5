"""What both kernels of a small contrastive batch know of its rows, and what one leaves the other.

z = x' inverse, where x' = 2^k x has its largest element in [1, 2): no square of it overflows, and
a power of two rounds nothing. Neither is stored: a product of rows reads x and multiplies.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mcr_fast.kernels.contrastive.rows import MAX_INVERSE_NORM, power_of_two

NT_XENT, SUP_CON = tl.constexpr(0), tl.constexpr(1)

STATISTICS = 8  # of a row, behind the similarities


class Given(NamedTuple):
    """The batch as it came."""

    x_ptr: Any  # [L, D]
    labels_ptr: Any  # [N] int64, of all modalities
    present_ptr: Any  # [N, M] int8, or None
    x_row_stride: Any
    x_col_stride: Any
    present_row_stride: Any
    present_col_stride: Any
    num_rows: Any  # L
    num_labels: Any  # N
    width: Any


class Scratch(NamedTuple):
    """Float32 numbers between the kernels; all but the first have one for each row."""

    s: Any  # [padded L, padded L], similarities in units of log2
    scale: Any  # 2^k
    inverse: Any
    inverse_norm: Any  # z = inverse_norm x
    top: Any  # largest similarity of those that are summed
    weight: Any  # c_a / N_a of nt_xent, 1 / E_a of sup_con, relative to it
    share: Any  # log2 N_a of nt_xent, 1 / |P(a)| of sup_con
    loss: Any
    terms: Any  # of those that the loss averages


@triton.jit
def scratch_at(scratch_ptr, padded_rows):
    """The places of `Scratch`."""
    at = scratch_ptr + padded_rows * padded_rows
    return Scratch(
        scratch_ptr,
        at,
        at + padded_rows,
        at + 2 * padded_rows,
        at + 3 * padded_rows,
        at + 4 * padded_rows,
        at + 5 * padded_rows,
        at + 6 * padded_rows,
        at + 7 * padded_rows,
    )


@triton.jit
def marks_of(given, rows):
    """Whether rows count, and their labels."""
    real = rows < given.num_rows
    row = rows % given.num_labels
    if given.present_ptr is not None:
        at = row.to(tl.int64) * given.present_row_stride
        at += (rows // given.num_labels).to(tl.int64) * given.present_col_stride
        real = real & (tl.load(given.present_ptr + at, mask=real, other=0) != 0)
    return real, tl.load(given.labels_ptr + row, mask=real, other=0)


@triton.jit
def load_tile(given, rows, columns, real):
    """x of rows and columns in float32, 0 for rows that do not count."""
    at = rows.to(tl.int64)[:, None] * given.x_row_stride
    at += columns.to(tl.int64)[None, :] * given.x_col_stride
    inside = real[:, None] & (columns < given.width)[None, :]
    return tl.load(given.x_ptr + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def norms_of(given, rows, real, BLOCK_K: tl.constexpr):
    """2^k, inverse and inverse norm of rows, 0 for the last two where a row does not count."""
    # below 2^-60 every norm is clamped
    exponent = tl.full(rows.shape, -60, tl.int32)
    square = tl.zeros(rows.shape, tl.float32)
    for first in range(0, given.width, BLOCK_K):
        x = load_tile(given, rows, first + tl.arange(0, BLOCK_K), real)
        largest = (tl.max(tl.abs(x), 1).to(tl.int32, bitcast=True) >> 23) - 127
        # 2^-127 is no normal number
        raised = tl.maximum(exponent, tl.minimum(largest, 126))
        square *= power_of_two(tl.maximum(2 * (exponent - raised), -126))
        scaled = x * power_of_two(-raised)[:, None]
        square += tl.sum(scaled * scaled, 1)
        exponent = raised
    # a row that is not finite turns everything that it meets into NaN, never into a number
    square = tl.where(square < float("inf"), square, float("nan"))
    scale = power_of_two(-exponent)
    inverse = 1.0 / tl.sqrt_rn(tl.where(square == 0.0, 1.0, square))
    inverse_norm = inverse * scale
    clamped = (inverse_norm >= MAX_INVERSE_NORM) | (square == 0.0)
    inverse = tl.where(clamped, MAX_INVERSE_NORM * power_of_two(exponent), inverse)
    inverse_norm = tl.where(clamped, MAX_INVERSE_NORM, inverse_norm)
    return scale, tl.where(real, inverse, 0.0), tl.where(real, inverse_norm, 0.0)
