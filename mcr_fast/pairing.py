"""Donors and routing: what the reference and the generic-fusion engine share."""

import math

import torch
from torch import Tensor


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


def members(subset: int, num_modalities: int) -> list[int]:
    """The modalities in a bitmask."""
    return [m for m in range(num_modalities) if subset >> m & 1]


_OUTSIDE = {"greedy": -1, "independent": 0, "collaborative": 1}


def route_factors(strategy: str, subset: int, num_modalities: int) -> list[int]:
    """route(S, m) for every modality: 1 if m is in S, else the strategy's k."""
    outside = _OUTSIDE[strategy]
    return [1 if subset >> m & 1 else outside for m in range(num_modalities)]


def head_factor(strategy: str, subset: int, num_modalities: int) -> int:
    """head(S): the factor of the parameters that all modalities share."""
    if strategy == "collaborative":
        return 1
    return sum(route_factors(strategy, subset, num_modalities))


def scale_gradient(x: Tensor, factor: int) -> Tensor:
    """x with its gradient multiplied by `factor`; the value is unchanged."""
    if factor == 1:
        return x
    if factor == 0:
        return x.detach()
    return x.detach() + factor * (x - x.detach())
