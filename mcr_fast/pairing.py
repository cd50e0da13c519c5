"""Who is whose donor, what each pair of a row and its donor weighs, and what rows share."""

import math

import torch
from torch import Tensor

from mcr_fast._names import EXCLUDES, choice


def donor_table(
    order: Tensor | None,  # [N] int64
    donors: Tensor | None,  # [1 or M, K] shifts with an order, [1 or M, K, N] rows without
    num_rows: int,
    device: torch.device,
) -> Tensor:  # [1 or M, K, N] int64
    """Return table[m, k, i] = the row that replaces row i; no order and no donors is exhaustive."""
    if order is None and donors is not None:
        return donors
    rows = torch.arange(num_rows, device=device)
    if order is None or donors is None:
        order, donors = rows, rows[None, 1:]
    # row order[a] takes order[a + shift], so row i takes order[position(i) + shift]
    position = order.argsort()
    return order[(position + donors[..., None]) % max(num_rows, 1)]


def checked_donors(
    order: Tensor | None,  # [N] int64
    donors: Tensor | None,  # [1 or M, K] shifts with an order, [1 or M, K, N] rows without
    num_rows: int,
    like: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Order and donors in range, and 1, or NaN if they were no permutations; None without donors.

    What is multiplied by that factor is NaN, its gradient too, where a table is not what it should
    be. For devices and compilers: the host never waits to raise.
    """
    if donors is None:
        return None, None, None
    if order is None:
        valid = _are_permutations(donors)
        last = num_rows - 1
    else:
        valid = _are_permutations(order) & ((donors >= 1) & (donors < num_rows)).all()
        order, last = order.clamp(0, max(num_rows - 1, 0)), num_rows
    factor = torch.where(valid, 1.0, math.nan).to(like.dtype)
    return order, donors.clamp(0, max(last, 0)), factor


def _are_permutations(rows: Tensor) -> Tensor:  # [..., N] -> []
    """Whether every row holds each of 0..N-1 once."""
    return (rows.sort(-1).values == torch.arange(rows.shape[-1], device=rows.device)).all()


NAN_CODES = 0x7FF8_0000_0000_0001  # of a row whose label is NaN: this and the row's number


def is_nan_code(labels: Tensor) -> Tensor:  # [N] int64 codes -> [N] bool
    """Whose label is NaN, which equals nothing, itself included."""
    return (labels >= NAN_CODES) & (labels < NAN_CODES + 2**31)


def pair_weights(
    tables: list[Tensor],  # a donor table [K, N] for each member of the subset
    modalities: list[int],  # the members
    labels: Tensor | None,  # [N] int64 codes
    present: Tensor | None,  # [N, M] bool
    sample_weight: Tensor | None,  # [N]
    *,
    exclude: str,
) -> Tensor:  # [K, N]
    """The weight of each pair (i, its donors), 0 where the pair is dropped.

    Excluding equal labels drops a row paired with itself too, unless its label is NaN.
    """
    choice("exclude", exclude, EXCLUDES)
    kept = torch.ones_like(tables[0], dtype=torch.bool)
    rows = torch.arange(kept.shape[-1], device=kept.device)
    for table, m in zip(tables, modalities, strict=True):
        if exclude == "self":
            kept = kept & (table != rows)
        elif exclude == "same_label":
            assert labels is not None, "checked at the public edge"
            kept = kept & ((labels[table] != labels) | is_nan_code(labels))
        if present is not None:
            kept = kept & present[:, m] & present[:, m][table]
    if sample_weight is None:
        return kept.to(torch.float32)
    weight = weights_in_range(no_negative(sample_weight))
    return torch.where(kept, weight, weight.new_zeros(()))


def no_negative(weight: Tensor) -> Tensor:
    """The weights, NaN for those below 0: the public edge cannot ask a device whether there are."""
    return torch.where(weight < 0, math.nan, weight)


def weights_in_range(weight: Tensor) -> Tensor:
    """Weights of a mean, all times one power of two where they are too small or large to be summed.

    A mean does not feel it; the inverse of the smallest float32, or the sum of large ones, would be
    infinite. At least float32.
    """
    if weight.numel() == 0:
        return weight
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    largest = weight.amax()
    factor = torch.where(largest < 1e-15, 2.0**100, torch.where(largest > 1e15, 2.0**-100, 1.0))
    return weight * factor.to(weight.dtype)


def of_all_rows(
    rows: int,
    labels: Tensor,  # [L] or [N], L = M * N
    present: Tensor | None,  # [L] or [N, M]
) -> tuple[Tensor, Tensor | None]:  # [L], [L]
    """Labels and presence of every row, of those of M modalities that stand one after another."""
    if labels.shape[0] != rows:  # repeat() takes five times as long
        labels = labels.expand(rows // labels.shape[0], -1).reshape(-1)
    if present is not None and present.ndim == 2:
        present = present.T.reshape(-1)
    return labels, present
