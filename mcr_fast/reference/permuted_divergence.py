"""Permuted divergence in plain torch: the truth that tests and benchmarks import."""

import torch
from torch import Tensor

from mcr_fast._names import CLEAN_PATHS, DIVERGENCES, EXCLUDES, OF_LOGITS, STRATEGIES, choice
from mcr_fast.game import head_factor, members, route_factors
from mcr_fast.pairing import checked_donors, donor_table, pair_weights
from mcr_fast.reference._divergence import mean_or_zero, saturated, weighted_sum
from mcr_fast.reference._similarity import accumulation_dtype


def permuted_divergence_reference(
    contributions: Tensor,  # [M, N, C]
    bias: Tensor | None,  # [C]
    order: Tensor | None,  # [N] int64
    donors: Tensor | None,  # [1 or M, K] shifts with an order, [1 or M, K, N] rows without
    labels: Tensor | None,  # [N] int64 codes
    present: Tensor | None,  # [N, M] bool
    sample_weight: Tensor | None,  # [N]
    *,
    subsets: tuple[int, ...],
    strategy: str,
    clean_path: str,
    divergence: str,
    exclude: str,
) -> Tensor:  # [S]
    """D_S of each subset (a bitmask): the weighted mean over the kept pairs (i, donor of i).

    The value is the plain mean; the gradient is routed by `strategy` and `clean_path`. Each
    subset holds all its [K, N, C] perturbed logits at once. No pair kept: 0 with zero gradient.
    Donors that are no permutations: NaN, and NaN gradients.
    """
    choice("strategy", strategy, STRATEGIES)
    choice("clean_path", clean_path, CLEAN_PATHS)
    choice("divergence", divergence, DIVERGENCES)
    choice("exclude", exclude, EXCLUDES)
    num_modalities, num_rows, num_classes = contributions.shape
    dtype = accumulation_dtype(contributions.dtype)
    x = contributions.to(dtype)
    b = x.new_zeros(num_classes) if bias is None else bias.to(dtype)
    if divergence in OF_LOGITS:
        x, b = saturated(x), saturated(b)
    order, donors, valid = checked_donors(order, donors, num_rows, x)
    if valid is not None:
        x, b = x * valid, b * valid
    table = donor_table(order, donors, num_rows, x.device)
    tables = table.expand(num_modalities, -1, -1)  # [M, K, N]

    results = []
    for subset in subsets:
        route = route_factors(strategy, subset, num_modalities)
        head = head_factor(strategy, subset, num_modalities)
        clean_route = {
            "shared": [head] * num_modalities,
            "routed": route,
            "detached": [0] * num_modalities,
        }[clean_path]
        perturbed = scale_gradient(b, head)
        clean = scale_gradient(b, 0 if clean_path == "detached" else head)
        for m in range(num_modalities):
            routed = scale_gradient(x[m], route[m])
            perturbed = perturbed + (routed[tables[m]] if subset >> m & 1 else routed)
            clean = clean + scale_gradient(x[m], clean_route[m])
        weight = pair_weights(
            [tables[m] for m in members(subset, num_modalities)],
            members(subset, num_modalities),
            labels,
            present,
            None if sample_weight is None else sample_weight.to(dtype),
            exclude=exclude,
        ).to(dtype)
        total = weighted_sum(clean.expand_as(perturbed), perturbed, weight, divergence)
        results.append(mean_or_zero(total, weight.sum()))
    divergences = torch.stack(results)
    # again, for where no pair is kept
    return divergences if valid is None else divergences * valid


def scale_gradient(x: Tensor, factor: int) -> Tensor:
    """x with its gradient multiplied by `factor`; the value is unchanged."""
    if factor == 1:
        return x
    if factor == 0:
        return x.detach()
    return x.detach() + factor * (x - x.detach())
