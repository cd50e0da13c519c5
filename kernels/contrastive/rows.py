"""The rows of a contrastive batch on their way in and out: sorted by label, scaled, and back.

A row x is stored as x' = 2^k x, its largest element in [1, 2): exact in the input's own 16 bits, so
products of rows run on tensor cores and lose nothing before float32. z = x' / |x'| exists nowhere;
the factor 1 / |x'| is applied to products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast.kernels.config import choose
from mcr_fast.kernels.contrastive.order import sort_by_label
from mcr_fast.kernels.search import first_of

# 1 / F.normalize's smallest norm; what the kernels store for rows that it clamps
MAX_INVERSE_NORM = tl.constexpr(1e12)

# A float16 row is scaled to the upper end of its range, where its smallest elements stay exact.
_TOP_EXPONENT = {torch.float16: 14}


@dataclass(frozen=True)
class Rows:
    """P present rows of L sorted by label, absent ones last, in a frame of whole tiles."""

    embeddings: Tensor  # [L, D], as given
    codes: Tensor  # [L] int64, sorted; those of absent rows in no order
    order: Tensor  # [L] int64, sorted row -> given row
    begin: Tensor  # [padded L] int32, first row of the same label; 0 for rows that do not count
    end: Tensor  # [padded L] int32, one past the last
    enter: Tensor  # [padded L] int32, from which column on a row counts; beyond all for the others
    num_present: Tensor  # [1] int64: P
    scaled: Tensor  # [padded L, padded D] x', zeros from row P and column D on
    inverse: Tensor  # [padded L] float32, z = inverse x'
    inverse_norm: Tensor  # [padded L] float32, z = inverse_norm x

    @property
    def padded_rows(self) -> int:
        """A multiple of both sides of a tile."""
        return self.scaled.shape[0]

    @property
    def padded_width(self) -> int:
        """A multiple of a tile's depth."""
        return self.scaled.shape[1]

    def per_row(self, dtype: torch.dtype) -> Tensor:  # [padded L]
        """Memory of a number for each row of the frame."""
        return torch.empty(self.padded_rows, dtype=dtype, device=self.scaled.device)


@triton.jit
def power_of_two(exponent):
    """2^exponent of whole numbers in -126..127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _store_classes(
    codes_ptr, to_ptrs, rows, present, num_present, padded_rows, steps, PAST_CLASS: tl.constexpr
):
    """Where the classes of rows begin and end, and where their columns do."""
    code = tl.load(codes_ptr + rows, mask=present, other=0)
    begin = first_of(codes_ptr, code, num_present, steps, False)
    end = first_of(codes_ptr, code, num_present, steps, True)
    enter = end if PAST_CLASS else (rows + 1).to(tl.int64)
    tl.store(to_ptrs[0], tl.where(present, begin, 0).to(tl.int32))
    tl.store(to_ptrs[1], tl.where(present, end, 0).to(tl.int32))
    tl.store(to_ptrs[2], tl.where(present, enter, padded_rows).to(tl.int32))


@triton.jit
def _scale_rows_kernel(
    x_ptr,  # [L, D]
    codes_ptr,  # [L], those of present rows ascending
    order_ptr,  # [L]
    num_present_ptr,  # [1], to fill if they are ALL_PRESENT
    begin_ptr,  # [padded L]
    end_ptr,  # [padded L]
    enter_ptr,  # [padded L]
    scaled_ptr,  # [padded L, padded D]
    inverse_ptr,  # [padded L]
    inverse_norm_ptr,  # [padded L]
    x_row_stride,
    x_col_stride,
    num_rows,
    padded_rows,
    steps,  # that halve L to nothing
    width,
    padded_width,
    ALL_PRESENT: tl.constexpr,
    PAST_CLASS: tl.constexpr,
    TOP_EXPONENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    if ALL_PRESENT:
        num_present = tl.cast(num_rows, tl.int64)
        tl.store(num_present_ptr, num_present)  # every program the same
    else:
        num_present = tl.load(num_present_ptr)
    present = rows < num_present
    class_ptrs = begin_ptr + rows, end_ptr + rows, enter_ptr + rows
    _store_classes(
        codes_ptr, class_ptrs, rows, present, num_present, padded_rows, steps, PAST_CLASS
    )
    from_row = tl.load(order_ptr + rows, mask=present, other=0)
    columns = tl.arange(0, BLOCK_D)
    x_ptrs = x_ptr + from_row[:, None] * x_row_stride
    to_ptrs = scaled_ptr + rows.to(tl.int64)[:, None] * padded_width

    largest = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for first in range(0, padded_width, BLOCK_D):
        d = first + columns.to(tl.int64)[None, :]
        kept = present[:, None] & (d < width)
        x = tl.load(x_ptrs + d * x_col_stride, mask=kept, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(x))
    exponent = (tl.max(largest, 1).to(tl.int32, bitcast=True) >> 23) - 127
    # below 2^-60 every norm is clamped, and 2^-127 is no normal number
    exponent = tl.minimum(tl.maximum(exponent, -60), 126)
    factor = power_of_two(TOP_EXPONENT - exponent)

    squares = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for first in range(0, padded_width, BLOCK_D):
        d = first + columns.to(tl.int64)[None, :]
        kept = present[:, None] & (d < width)
        x = tl.load(x_ptrs + d * x_col_stride, mask=kept, other=0.0).to(tl.float32)
        scaled = x * factor[:, None]
        squares += scaled * scaled
        tl.store(to_ptrs + d, scaled.to(scaled_ptr.dtype.element_ty), mask=d < padded_width)
    square = tl.sum(squares, 1)
    # a row that is not finite turns everything that it meets into NaN, never into a number
    square = tl.where(square < float("inf"), square, float("nan"))
    inverse = 1.0 / tl.sqrt_rn(tl.where(square == 0.0, 1.0, square))
    inverse_norm = inverse * factor
    clamped = (inverse_norm >= MAX_INVERSE_NORM) | (square == 0.0)
    at_clamp = MAX_INVERSE_NORM * power_of_two(exponent - TOP_EXPONENT)
    # a row of zeros may have any; one like the others' keeps what is multiplied by it in range
    inverse = tl.where(clamped, at_clamp, inverse)
    inverse = tl.where(square == 0.0, 2.0**-TOP_EXPONENT, inverse)
    tl.store(inverse_ptr + rows, tl.where(present, inverse, 0.0))
    inverse_norm = tl.where(clamped, MAX_INVERSE_NORM, inverse_norm)
    tl.store(inverse_norm_ptr + rows, tl.where(present, inverse_norm, 0.0))


@triton.jit
def _project_rows_kernel(
    g_ptr,  # [padded L, padded D] float32: inverse times the gradient of z
    scaled_ptr,  # [padded L, padded D]
    inverse_ptr,  # [padded L]
    inverse_norm_ptr,  # [padded L]
    order_ptr,  # [L]
    num_present_ptr,  # [1]
    factor_ptr,  # [1] float32
    grad_x_ptr,  # [L, D]
    num_rows,
    width,
    padded_width,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # grad_x = factor / |x| (g_z - z (z . g_z)) with z = inverse x' and g_z = g / inverse, without
    # the projection where the norm was clamped: (g - inverse^2 x' (x' . g)) times a power of two,
    # inverse_norm / inverse
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    present = rows < tl.load(num_present_ptr)
    to_row = tl.load(order_ptr + rows, mask=rows < num_rows, other=0)
    inverse = tl.load(inverse_ptr + rows)
    inverse_norm = tl.load(inverse_norm_ptr + rows)
    columns = tl.arange(0, BLOCK_D)
    g_ptrs = g_ptr + rows.to(tl.int64)[:, None] * padded_width
    x_ptrs = scaled_ptr + rows.to(tl.int64)[:, None] * padded_width

    products = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for first in range(0, width, BLOCK_D):
        d = first + columns.to(tl.int64)[None, :]
        kept = present[:, None] & (d < padded_width)
        g = tl.load(g_ptrs + d, mask=kept, other=0.0)
        x = tl.load(x_ptrs + d, mask=kept, other=0.0).to(tl.float32)
        products += g * x
    along = inverse * inverse * tl.sum(products, 1)
    along = tl.where(inverse_norm == MAX_INVERSE_NORM, 0.0, along)[:, None]
    # without terms the gradient is 0, whatever the rows hold
    factor = tl.load(factor_ptr)
    counts = (present & (tl.zeros_like(inverse_norm) + factor != 0.0))[:, None]
    factor = (factor * (inverse_norm / inverse))[:, None]
    for first in range(0, width, BLOCK_D):
        d = first + columns.to(tl.int64)[None, :]
        kept = present[:, None] & (d < padded_width)
        g = tl.load(g_ptrs + d, mask=kept, other=0.0)
        x = tl.load(x_ptrs + d, mask=kept, other=0.0).to(tl.float32)
        grad = tl.where(counts, factor * (g - along * x), 0.0)
        inside = (rows < num_rows)[:, None] & (d < width)
        tl.store(grad_x_ptr + to_row[:, None] * width + d, grad, mask=inside)


def scale_rows(
    embeddings: Tensor,  # [L, D]
    labels: Tensor,  # [L]
    present: Tensor | None,  # [L]
    *,
    past_class: bool,
    row_multiple: int,
    width_multiple: int,
) -> Rows:
    """Sort the rows and lay them out in whole tiles.

    With `past_class` a row enters the columns past its label's, else those past its own.
    """
    num_rows, width = embeddings.shape
    padded_rows = triton.cdiv(num_rows, row_multiple) * row_multiple
    padded_width = max(1, triton.cdiv(width, width_multiple)) * width_multiple
    codes, order, counted = sort_by_label(labels, present)
    frame = embeddings.new_empty((3, padded_rows), dtype=torch.int32)
    inverses = embeddings.new_empty((2, padded_rows), dtype=torch.float32)
    rows = Rows(
        embeddings=embeddings,
        codes=codes,
        order=order,
        begin=frame[0],
        end=frame[1],
        enter=frame[2],
        num_present=order.new_empty(1) if counted is None else counted,
        scaled=embeddings.new_empty((padded_rows, padded_width)),
        inverse=inverses[0],
        inverse_norm=inverses[1],
    )
    config = choose("rows", width)
    _scale_rows_kernel[(triton.cdiv(padded_rows, config.blocks["BLOCK_R"]),)](
        x_ptr=embeddings,
        codes_ptr=codes,
        order_ptr=order,
        num_present_ptr=rows.num_present,
        begin_ptr=rows.begin,
        end_ptr=rows.end,
        enter_ptr=rows.enter,
        scaled_ptr=rows.scaled,
        inverse_ptr=rows.inverse,
        inverse_norm_ptr=rows.inverse_norm,
        x_row_stride=embeddings.stride(0),
        x_col_stride=embeddings.stride(1),
        num_rows=num_rows,
        padded_rows=padded_rows,
        steps=num_rows.bit_length(),
        width=width,
        padded_width=padded_width,
        ALL_PRESENT=counted is None,
        PAST_CLASS=past_class,
        TOP_EXPONENT=_TOP_EXPONENT.get(embeddings.dtype, 0),
        **config.launch(),
    )
    return rows


def project_rows(
    rows: Rows,
    g: Tensor,  # [padded L, padded D] float32
    factor: Tensor,  # [1] float32
) -> Tensor:  # [L, D] float32
    """The rows' gradient in their given order, times a factor; g is `inverse` times that of z."""
    grad_x = g.new_empty(rows.embeddings.shape)
    config = choose("rows", grad_x.shape[1])
    _project_rows_kernel[(triton.cdiv(g.shape[0], config.blocks["BLOCK_R"]),)](
        g_ptr=g,
        scaled_ptr=rows.scaled,
        inverse_ptr=rows.inverse,
        inverse_norm_ptr=rows.inverse_norm,
        order_ptr=rows.order,
        num_present_ptr=rows.num_present,
        factor_ptr=factor,
        grad_x_ptr=grad_x,
        num_rows=grad_x.shape[0],
        width=grad_x.shape[1],
        padded_width=rows.padded_width,
        **config.launch(),
    )
    return grad_x
