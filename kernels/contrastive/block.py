"""A block of the contrastive losses: anchors against columns that may be another process's rows.

Both are sorted by label and laid out in whole tiles, as the rows of a batch are, so that a row's
positives are one range of columns. Exponentials are relative to the bound of any logit: s' is
s - scale, in log2 units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast.kernels.config import PRECISE, Config, choose, similarity
from mcr_fast.kernels.contrastive.rows import Rows, scale_rows
from mcr_fast.kernels.search import first_between, first_of

BLOCK = 256  # rows of one program that looks them up


@triton.jit
def _classes_kernel(
    codes_ptr,  # [R] of the rows, those of present ones ascending
    order_ptr,  # [R]
    num_present_ptr,  # [1]
    column_codes_ptr,  # [Q], likewise
    column_order_ptr,  # [Q], ascending within a label
    num_columns_ptr,  # [1], present ones
    begin_ptr,  # [padded R], first column of the row's label; 0 for absent rows
    end_ptr,  # [padded R], one past the last
    own_ptr,  # [padded R], the column that is the row itself, -1 for none
    padded_rows,
    offset,
    steps,  # that halve Q to nothing
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < padded_rows
    present = rows < tl.load(num_present_ptr)
    num_columns = tl.load(num_columns_ptr)
    code = tl.load(codes_ptr + rows, mask=present, other=0)
    begin = first_of(column_codes_ptr, code, num_columns, steps, False)
    end = first_of(column_codes_ptr, code, num_columns, steps, True)
    given = tl.load(order_ptr + rows, mask=present, other=0) + offset
    given = tl.where(offset >= 0, given, -1)
    at = first_between(column_order_ptr, given, begin, end, steps, False)
    there = tl.load(column_order_ptr + at, mask=present & (at < end), other=-2)
    own = tl.where(there == given, at, -1)
    tl.store(begin_ptr + rows, tl.where(present, begin, 0).to(tl.int32), mask=inside)
    tl.store(end_ptr + rows, tl.where(present, end, 0).to(tl.int32), mask=inside)
    tl.store(own_ptr + rows, own.to(tl.int32), mask=inside)


@dataclass(frozen=True)
class Block:
    """Rows and columns, what rows know of the columns, and how the kernels cut them into tiles."""

    rows: Rows
    columns: Rows
    begin: Tensor  # [padded R] int32, first column of the row's label
    end: Tensor  # [padded R] int32, one past the last
    own: Tensor  # [padded R] int32, the column that is the row, -1 for none
    scale: float  # log2(e) / temperature
    running_max: bool  # powers of logits have to be kept in range one by one
    every: Config  # of kernels over all tiles
    near: Config  # of kernels over the tiles that hold positives

    def tiles(self, config: Config) -> dict[str, Any]:
        """What every kernel over tiles is launched with, beside its own tensors."""
        wide = self.rows.scaled.dtype == torch.float32
        return {
            "scaled_ptr": self.rows.scaled,
            "inverse_ptr": self.rows.inverse,
            "num_present_ptr": self.rows.num_present,
            "col_scaled_ptr": self.columns.scaled,
            "col_inverse_ptr": self.columns.inverse,
            "width": self.rows.padded_width,
            "scale": self.scale,
            "PRECISE": PRECISE,
            # three products of tf32 parts: float32 up to its last bit or two, on tensor cores
            "DOT_PRECISION": "tf32x3" if wide else "ieee",
            **config.launch(),
        }

    def places(self) -> dict[str, Tensor]:
        """Where rows find columns of their label, and themselves."""
        return {"begin_ptr": self.begin, "end_ptr": self.end, "own_ptr": self.own}


def make_block(
    rows: Tensor,  # [R, D]
    row_codes: Tensor,  # [R]
    row_marks: Tensor | None,  # [R]
    columns: Tensor,  # [Q, D]
    column_codes: Tensor,  # [Q]
    column_marks: Tensor | None,  # [Q]
    offset: int,
    temperature: float,
) -> Block:
    """Sort and lay out both sides; neither is empty."""
    scale = math.log2(math.e) / temperature
    # 2^(-2 scale), the least exponential there is, and its inverse times a number of rows must be
    # normal numbers
    running_max = not 2 * scale < 100
    bits = 8 * rows.element_size()
    every = similarity(bits, math.isqrt(len(rows) * len(columns)), running_max)
    near = choose(f"positives_{bits}", len(rows))
    sides = [
        scale_rows(
            x,
            codes,
            marks,
            past_class=False,
            row_multiple=max(every.blocks["BLOCK_M"], every.blocks["BLOCK_N"]),
            width_multiple=every.blocks["BLOCK_K"],
        )
        for x, codes, marks in (
            (rows, row_codes, row_marks),
            (columns, column_codes, column_marks),
        )
    ]
    ours, theirs = sides
    frame = rows.new_empty((3, ours.padded_rows), dtype=torch.int32)
    _classes_kernel[(triton.cdiv(ours.padded_rows, BLOCK),)](
        codes_ptr=ours.codes,
        order_ptr=ours.order,
        num_present_ptr=ours.num_present,
        column_codes_ptr=theirs.codes,
        column_order_ptr=theirs.order,
        num_columns_ptr=theirs.num_present,
        begin_ptr=frame[0],
        end_ptr=frame[1],
        own_ptr=frame[2],
        padded_rows=ours.padded_rows,
        offset=offset,
        steps=len(columns).bit_length(),
        BLOCK=BLOCK,
        num_warps=4,
    )
    return Block(ours, theirs, frame[0], frame[1], frame[2], scale, running_max, every, near)
