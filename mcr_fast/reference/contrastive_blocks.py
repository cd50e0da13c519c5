"""The contrastive losses by blocks of columns in plain torch: the truth of the ops for many ranks.

Anchors are rows of one process, a block of columns is any process's rows. With s'_ab =
(z_a . z_b - 1) / temperature of l2-normalised rows z every exponential is at most 1, and results
are logarithms, so that they are finite at small temperatures. What the blocks give is merged by
the caller: logarithms of sums by logaddexp, everything else by addition.

`offset` is the index of row 0 among the columns, -1 where the rows are not among them: a row is
never its own column. Rows and columns whose mark is False are neither anchors nor columns.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mcr_fast.reference._similarity import _normalized, accumulation_dtype, without_autocast


def contrastive_sums_reference(
    rows: Tensor,  # [R, D]
    row_codes: Tensor,  # [R] int64
    row_marks: Tensor | None,  # [R] bool
    columns: Tensor,  # [Q, D]
    column_codes: Tensor,  # [Q] int64
    column_marks: Tensor | None,  # [Q] bool
    offset: int,
    loss: str,  # "nt_xent" or "sup_con"
    temperature: float,
) -> Tensor:  # [R]
    """Log of the sum of e^s' over each row's negatives (nt_xent) or others (sup_con)."""
    block = (rows, row_codes, row_marks, columns, column_codes, column_marks, offset)
    s, positive, other, _ = _similarities(*block, temperature)
    counted = other & ~positive if loss == "nt_xent" else other
    return torch.logsumexp(s.masked_fill(~counted, -math.inf), dim=1)


def contrastive_pairs_reference(
    rows: Tensor,  # [R, D]
    row_codes: Tensor,  # [R] int64
    row_marks: Tensor | None,  # [R] bool
    columns: Tensor,  # [Q, D]
    column_codes: Tensor,  # [Q] int64
    column_marks: Tensor | None,  # [Q] bool
    offset: int,
    loss: str,  # "nt_xent" or "sup_con"
    log_sum: Tensor,  # [R], over all blocks; sup_con does not read it
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:  # [R], [R], [R] or [0]
    """Each row's loss over its positives in the block, their number, and log W of nt_xent."""
    block = (rows, row_codes, row_marks, columns, column_codes, column_marks, offset)
    s, positive, _, _ = _similarities(*block, temperature)
    count = positive.sum(dim=1).to(s.dtype)
    if loss == "sup_con":
        return -torch.where(positive, s, 0.0).sum(dim=1), count, s.new_empty(0)
    log_sum = log_sum.to(s.dtype)[:, None]
    # -logsigmoid and not softplus, whose threshold of 20 costs float64 its last digits
    pair_loss = torch.where(positive, -F.logsigmoid(s - log_sum), 0.0).sum(dim=1)
    weights = (-torch.logaddexp(s, log_sum)).masked_fill(~positive, -math.inf)
    return pair_loss, count, torch.logsumexp(weights, dim=1)


def contrastive_gradient_reference(
    rows: Tensor,  # [R, D]
    row_codes: Tensor,  # [R] int64
    row_marks: Tensor | None,  # [R] bool
    columns: Tensor,  # [Q, D]
    column_codes: Tensor,  # [Q] int64
    column_marks: Tensor | None,  # [Q] bool
    offset: int,
    loss: str,  # "nt_xent" or "sup_con"
    row_stats: Tensor,  # [2, R]
    column_stats: Tensor,  # [2, Q]
    temperature: float,
) -> Tensor:  # [R, D]
    """H U with U the columns normalised, H what the pairs of the block weigh in the gradient.

    The statistics of nt_xent are (log of the sum, log W), those of sup_con (log of the sum, inf
    where a row is no anchor; 1 / number of positives, 0 where there is none).
    """
    block = (rows, row_codes, row_marks, columns, column_codes, column_marks, offset)
    s, positive, other, u = _similarities(*block, temperature)
    (first_a, second_a), (first_b, second_b) = row_stats.to(s.dtype), column_stats.to(s.dtype)
    first_a, second_a = first_a[:, None], second_a[:, None]
    if loss == "nt_xent":
        pulls = -torch.sigmoid(first_a - s) - torch.sigmoid(first_b - s)
        pushes = torch.exp(s + second_a) + torch.exp(s + second_b)
        h = torch.where(positive, pulls, pushes)
    else:
        shares = torch.exp(s - first_a) + torch.exp(s - first_b)
        h = torch.where(positive, shares - second_a - second_b, shares)
    with without_autocast(u.device):
        return torch.where(other, h, 0.0) @ u


def _similarities(
    rows: Tensor,
    row_codes: Tensor,
    row_marks: Tensor | None,
    columns: Tensor,
    column_codes: Tensor,
    column_marks: Tensor | None,
    offset: int,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [R, Q] three times, [Q, D]
    """s', which pairs are positive, which pairs count at all, and the columns normalised."""
    z, u = _unit_rows(rows, row_marks), _unit_rows(columns, column_marks)
    with without_autocast(z.device):  # logits are never rounded to 16 bits
        s = (z @ u.T - 1.0) / temperature
    other = torch.ones_like(s, dtype=torch.bool)
    if row_marks is not None:
        other = other & row_marks[:, None]
    if column_marks is not None:
        other = other & column_marks
    if offset >= 0:
        places = torch.arange(len(z), device=s.device) + offset
        other = other & (places[:, None] != torch.arange(len(u), device=s.device))
    return s, other & (row_codes[:, None] == column_codes), other, u


def _unit_rows(x: Tensor, marks: Tensor | None) -> Tensor:
    """Rows normalised; those without a mark are 0, whatever they hold."""
    x = x.to(accumulation_dtype(x.dtype))
    if marks is not None:
        x = torch.where(marks[:, None], x, 0.0)
    return _normalized(x)
