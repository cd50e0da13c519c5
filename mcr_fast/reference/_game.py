"""Donors and routing: what the reference and the generic-fusion engine share."""

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
