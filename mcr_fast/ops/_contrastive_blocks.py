"""The contrastive losses by blocks of columns: registered, and the choice of backend.

Rows of this process are anchors; the columns may be any process's rows. The collectives around
these ops are what is differentiated: the ops themselves take no gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mcr_fast.ops._backend import resolve
from mcr_fast.ops._dispatch import call, find, raise_no_gradient, register_block
from mcr_fast.ops._limits import Call
from mcr_fast.reference._similarity import accumulation_dtype
from mcr_fast.reference.contrastive_blocks import (
    contrastive_gradient_reference,
    contrastive_pairs_reference,
    contrastive_sums_reference,
)


def _sums_fake(rows: Tensor, *_: Any) -> Tensor:
    return rows.new_empty(len(rows), dtype=accumulation_dtype(rows.dtype))


def _pairs_fake(rows: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    loss = others[-3]
    log_weight = _sums_fake(rows) if loss != "sup_con" else _sums_fake(rows[:0])
    return _sums_fake(rows), _sums_fake(rows), log_weight


def _gradient_fake(rows: Tensor, *_: Any) -> Tensor:
    return rows.new_empty(rows.shape, dtype=accumulation_dtype(rows.dtype))


register_block("contrastive_sums", _sums_fake)
register_block("contrastive_pairs", _pairs_fake)
register_block("contrastive_gradient", _gradient_fake)


def contrastive_sums(
    rows: Tensor,  # [R, D]
    row_codes: Tensor,  # [R] int64
    row_marks: Tensor | None,  # [R] bool; False: no anchor, whatever the row holds
    columns: Tensor,  # [Q, D]
    column_codes: Tensor,  # [Q] int64
    column_marks: Tensor | None,  # [Q] bool
    offset: int,  # column that is row 0, and so on; -1: the rows are not among the columns
    loss: str,  # "nt_xent" or "sup_con"
    temperature: float,
    *,
    backend: str | None = None,
) -> Tensor:  # [R]
    """log sum of e^s'_ab over a's negatives (nt_xent) or others (sup_con), -inf for none.

    s'_ab = (z_a . z_b - 1) / temperature with z the rows normalised. The result, as those of the
    ops below, is float32, or float64 for float64. A row has the code of its own column.
    """
    block = (rows, row_codes, row_marks, columns, column_codes, column_marks, offset, loss)
    given = (*block, temperature)
    made: Tensor = _run("contrastive_sums", contrastive_sums_reference, given, backend)
    return made


def contrastive_pairs(
    rows: Tensor,  # [R, D]
    row_codes: Tensor,  # [R] int64
    row_marks: Tensor | None,  # [R] bool
    columns: Tensor,  # [Q, D]
    column_codes: Tensor,  # [Q] int64
    column_marks: Tensor | None,  # [Q] bool
    offset: int,
    loss: str,
    log_sum: Tensor,  # [R], over all blocks; sup_con does not read it
    temperature: float,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # [R], [R], [R] or [0]
    """Of each row's positives p in the block: their loss, their number, and log W of nt_xent.

    nt_xent: sum of softplus(log_sum_a - s'_ap), and log sum of 1 / (e^s'_ap + e^log_sum_a), -inf
    for none. sup_con: sum of -s'_ap.
    """
    block = (rows, row_codes, row_marks, columns, column_codes, column_marks, offset, loss)
    given = (*block, log_sum, temperature)
    made: tuple[Tensor, Tensor, Tensor] = _run(
        "contrastive_pairs", contrastive_pairs_reference, given, backend
    )
    return made


def contrastive_gradient(
    rows: Tensor,  # [R, D]
    row_codes: Tensor,  # [R] int64
    row_marks: Tensor | None,  # [R] bool
    columns: Tensor,  # [Q, D]
    column_codes: Tensor,  # [Q] int64
    column_marks: Tensor | None,  # [Q] bool
    offset: int,
    loss: str,
    row_stats: Tensor,  # [2, R], over all blocks
    column_stats: Tensor,  # [2, Q]
    temperature: float,
    *,
    backend: str | None = None,
) -> Tensor:  # [R, D]
    """H U with U the columns normalised and H what the block's pairs weigh in dloss/dz.

    nt_xent, of (log_sum, log W): -(sigmoid(log_sum_a - s') + sigmoid(log_sum_b - s')) on positives
    and e^(s' + log W_a) + e^(s' + log W_b) on negatives. sup_con, of (log_sum, inf for no anchor;
    1 / count, 0 for none): e^(s' - log_sum_a) + e^(s' - log_sum_b) on others, less
    1 / count_a + 1 / count_b on positives.
    """
    block = (rows, row_codes, row_marks, columns, column_codes, column_marks, offset, loss)
    given = (*block, row_stats, column_stats, temperature)
    made: Tensor = _run("contrastive_gradient", contrastive_gradient_reference, given, backend)
    return made


def _run(
    op: str, reference: Callable[..., Any], given: tuple[Any, ...], backend: str | None
) -> Any:
    """The op, by whichever backend serves."""
    rows, columns = given[0], given[3]
    dtypes, size = (rows.dtype, columns.dtype), Call(len(columns), rows.shape[1])
    chosen = resolve(op, backend, rows.device, *dtypes, call=size)
    if chosen == "reference":
        return reference(*given)
    if torch.is_grad_enabled() and (rows.requires_grad or columns.requires_grad):
        raise_no_gradient(op)
    return call(find(op, chosen), *given, graph=False)
