"""A contrastive batch, and the logits of a tile of it.

Logits are in log2 units: s_ab = z_a . z_b log2(e) / temperature, computed in float32 from products
of the rows as they came.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast.kernels.config import PRECISE, Config, choose, similarity
from mcr_fast.kernels.contrastive.rows import Rows, scale_rows
from mcr_fast.kernels.math import INTERPRETED


class Vectors(NamedTuple):
    """The rows that logits are products of, as a kernel hands them on."""

    scaled_ptr: Any  # [padded L, width]
    inverse_ptr: Any  # [padded L]
    width: Any
    scale: Any


class ClassColumns(NamedTuple):
    """Some rows, and the columns of their labels."""

    rows: Any  # [BLOCK_M]
    begin: Any  # [BLOCK_M, 1], first row of the same label
    end: Any  # [BLOCK_M, 1], one past the last
    low: Any  # first column of the tiles that hold all of them
    high: Any  # one past the last column


@triton.jit
def logit_tile(
    vectors,
    first_row,
    first_col,
    DOT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """s of rows first_row .. and columns first_col .., [BLOCK_M, BLOCK_N] float32."""
    return logits_between(
        vectors, vectors, first_row, first_col, DOT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_K
    )


@triton.jit
def logits_between(
    of_rows,
    of_columns,  # of the same width and scale
    first_row,
    first_col,
    DOT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The same of two sets of rows."""
    width = of_rows.width
    rows = tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    row_ptr = of_rows.scaled_ptr + tl.cast(first_row, tl.int64) * width
    col_ptr = of_columns.scaled_ptr + tl.cast(first_col, tl.int64) * width
    a_ptrs = row_ptr + rows[:, None] * width + k[None, :]
    b_ptrs = col_ptr + cols[None, :] * width + k[:, None]
    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for _ in range(0, width, BLOCK_K):
        a = tl.load(a_ptrs)
        b = tl.load(b_ptrs)
        if INTERPRETED:  # the interpreter would multiply the bits of bfloat16 as integers
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        product = tl.dot(a, b, product, input_precision=DOT_PRECISION)
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K
    inverse_a = tl.load(of_rows.inverse_ptr + first_row + rows) * of_rows.scale
    inverse_b = tl.load(of_columns.inverse_ptr + first_col + cols)
    return product * inverse_a[:, None] * inverse_b[None, :]


@triton.jit
def class_columns(
    begin_ptr,  # [padded L]
    end_ptr,  # [padded L]
    num_present_ptr,  # [1]
    first,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_M rows from `first` on, and the columns of their classes."""
    rows = first + tl.arange(0, BLOCK_M)
    begin = tl.load(begin_ptr + rows)[:, None]
    end = tl.load(end_ptr + rows)[:, None]
    last = tl.minimum(first + BLOCK_M, tl.load(num_present_ptr).to(tl.int32)) - 1
    low = tl.load(begin_ptr + first) // BLOCK_N * BLOCK_N
    high = tl.load(end_ptr + last, mask=last >= first, other=0)
    return ClassColumns(rows, begin, end, low, high)


@triton.jit
def within(of_class, first, count):
    """The same rows, with those of their columns that are among `count` from `first` on."""
    low = tl.maximum(of_class.low, first)
    high = tl.minimum(of_class.high, first + count)
    return ClassColumns(of_class.rows, of_class.begin, of_class.end, low, high)


@triton.jit
def same_label(of_class, cols):
    """Which columns have the label of which rows, [BLOCK_M, BLOCK_N]."""
    return (cols[None, :] >= of_class.begin) & (cols[None, :] < of_class.end)


@dataclass(frozen=True)
class Batch:
    """A batch's rows, its temperature, and how the kernels cut it into tiles."""

    rows: Rows
    temperature: float
    scale: float  # log2(e) / temperature
    running_max: bool
    triangle: Config  # of kernels over all tiles
    diagonal: Config  # of kernels over the tiles that hold positives

    def tiles(self, config: Config) -> dict[str, Any]:
        """What every kernel over tiles is launched with, beside its own tensors."""
        wide = self.rows.scaled.dtype == torch.float32
        return {
            "scaled_ptr": self.rows.scaled,
            "inverse_ptr": self.rows.inverse,
            "num_present_ptr": self.rows.num_present,
            "width": self.rows.padded_width,
            "scale": self.scale,
            "PRECISE": PRECISE,
            # three products of tf32 parts: float32 up to its last bit or two, on tensor cores
            "DOT_PRECISION": "tf32x3" if wide else "ieee",
            **config.launch(),
        }

    def positives(self, **given: Tensor) -> dict[str, Any]:
        """What every kernel over the tiles that hold positives is launched with."""
        places = {"begin_ptr": self.rows.begin, "end_ptr": self.rows.end}
        return {**places, **given, **self.tiles(self.diagonal)}

    @property
    def diagonal_tiles(self) -> tuple[int]:
        """The programs of such a kernel over all rows."""
        return (self.rows.padded_rows // self.diagonal.blocks["BLOCK_M"],)


def nothing(embeddings: Tensor, want_grad: bool) -> tuple[Tensor, Tensor]:
    """Loss and gradient of no rows."""
    zero = embeddings.new_zeros((), dtype=torch.float32)
    return zero, zero.new_zeros(embeddings.shape if want_grad else (0, 0))


def make_batch(
    embeddings: Tensor,  # [L, D]
    labels: Tensor,  # [L]
    present: Tensor | None,  # [L]
    temperature: float,
    *,
    past_class: bool,
) -> Batch:
    """Sort and lay out a batch; with `past_class` positives are no column of a row's sum."""
    scale = math.log2(math.e) / temperature
    # 2^(-2 scale), the least exponential there is, and L times its inverse must be normal numbers
    running_max = not 2 * scale + math.log2(len(labels) + 1) < 120
    bits = 8 * embeddings.element_size()
    triangle = similarity(bits, len(labels), running_max)
    diagonal = choose(f"positives_{bits}", len(labels))
    rows = scale_rows(
        embeddings,
        labels,
        present,
        past_class=past_class,
        row_multiple=max(triangle.blocks["BLOCK_M"], triangle.blocks["BLOCK_N"]),
        width_multiple=triangle.blocks["BLOCK_K"],
    )
    return Batch(rows, temperature, scale, running_max, triangle, diagonal)
