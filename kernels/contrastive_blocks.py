"""The contrastive losses by blocks of columns, which may be another process's rows.

With s'_ab = (z_a . z_b - 1) / temperature: log-sums of a row's e^s', what its positives cost, and
H U, H what the pairs weigh in the gradient and U the columns normalised. Nothing is differentiated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcr_fast.kernels.arguments import CODES, FLOATS, MARKS, check, choice
from mcr_fast.kernels.contrastive.block import make_block
from mcr_fast.kernels.contrastive.block_panels import lay_out, weighted_columns
from mcr_fast.kernels.contrastive.block_sums import log_sums, pairs

_STATISTICS = (torch.float32,)
_LOSSES = {"nt_xent": 1, "sup_con": 0}


def _check(
    rows: Tensor,  # [R, D]
    row_codes: Tensor,  # [R]
    row_marks: Tensor | None,  # [R]
    columns: Tensor,  # [Q, D]
    column_codes: Tensor,  # [Q]
    column_marks: Tensor | None,  # [Q]
    offset: int,
    loss: str,
    temperature: float,
) -> bool:
    """Whether the loss is over pairs (nt_xent).

    Raises:
        ValueError: for a tensor or an option that does not fit.
    """
    check("rows", rows, rows, FLOATS, None, None)
    check("columns", columns, rows, (rows.dtype,), None, rows.shape[1])
    for side, x, codes, marks in (
        ("row", rows, row_codes, row_marks),
        ("column", columns, column_codes, column_marks),
    ):
        check(f"{side}_codes", codes, rows, CODES, len(x))
        check(f"{side}_marks", marks, rows, MARKS, len(x))
    if offset != -1 and not 0 <= offset <= len(columns) - len(rows):
        raise ValueError(
            f"offset must be -1, or leave room for {len(rows)} rows among {len(columns)} columns, "
            f"got {offset}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return choice("loss", loss, _LOSSES) == 1


def contrastive_sums(
    rows: Tensor,  # [R, D]
    row_codes: Tensor,  # [R] int64
    row_marks: Tensor | None,  # [R] bool
    columns: Tensor,  # [Q, D]
    column_codes: Tensor,  # [Q] int64
    column_marks: Tensor | None,  # [Q] bool
    offset: int,
    loss: str,
    temperature: float,
) -> Tensor:  # [R] float32
    """Logarithms of sums over each row's negatives (nt_xent) or others (sup_con)."""
    block = (rows, row_codes, row_marks, columns, column_codes, column_marks, offset)
    over_pairs = _check(*block, loss, temperature)
    if len(rows) == 0 or len(columns) == 0:
        return rows.new_full((len(rows),), -float("inf"), dtype=torch.float32)
    return log_sums(make_block(*block, temperature), past_class=over_pairs)


def contrastive_pairs(
    rows: Tensor,
    row_codes: Tensor,
    row_marks: Tensor | None,
    columns: Tensor,
    column_codes: Tensor,
    column_marks: Tensor | None,
    offset: int,
    loss: str,
    log_sum: Tensor,  # [R] float32; sup_con does not read it
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:  # [R], [R], [R] or [0] float32
    """Each row's loss over its positives, their number, and log W of nt_xent."""
    block = (rows, row_codes, row_marks, columns, column_codes, column_marks, offset)
    over_pairs = _check(*block, loss, temperature)
    check("log_sum", log_sum, rows, _STATISTICS, len(rows) if over_pairs else None)
    if len(rows) == 0 or len(columns) == 0:
        zeros = rows.new_zeros((2, len(rows)), dtype=torch.float32)
        none = zeros.new_full((len(rows) if over_pairs else 0,), -float("inf"))
        return zeros[0].clone(), zeros[1].clone(), none
    made = make_block(*block, temperature)
    return pairs(made, log_sum.contiguous() if over_pairs else None)


def contrastive_gradient(
    rows: Tensor,
    row_codes: Tensor,
    row_marks: Tensor | None,
    columns: Tensor,
    column_codes: Tensor,
    column_marks: Tensor | None,
    offset: int,
    loss: str,
    row_stats: Tensor,  # [2, R] float32
    column_stats: Tensor,  # [2, Q] float32
    temperature: float,
) -> Tensor:  # [R, D] float32
    """H U."""
    given = (rows, row_codes, row_marks, columns, column_codes, column_marks, offset)
    over_pairs = _check(*given, loss, temperature)
    check("row_stats", row_stats, rows, _STATISTICS, 2, len(rows))
    check("column_stats", column_stats, rows, _STATISTICS, 2, len(columns))
    if len(rows) == 0 or len(columns) == 0:
        return rows.new_zeros(rows.shape, dtype=torch.float32)
    block = make_block(*given, temperature)
    of_rows = lay_out(row_stats, block.rows, over_pairs, block.running_max)
    of_columns = lay_out(column_stats, block.columns, over_pairs, block.running_max)
    return weighted_columns(block, of_rows, of_columns, over_pairs)
