"""Expectation and variance of a mean over drawn pairs: the formulas of docs/estimator.md.

Everything starts from the matrix f of a batch: f[i, j] is what the pair (row i, donor j) adds, of
one subset or summed over subsets that share their donors; f[i, i] = 0. The variances are those of
the draw with the batch held fixed, unless they say otherwise, and exact.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mcr_fast.reference._divergence import row_divergences


def pair_matrix(
    contributions: Tensor,  # [M, N, C], with the bias in one of them
    subsets: Sequence[Sequence[int]],  # the members of each
) -> Tensor:  # [N, N] float64
    """f of an additive fusion, summed over subsets whose members share their donor: the JSD."""
    parts = contributions.detach().double()
    clean = parts.sum(0)
    f = clean.new_zeros(len(clean), len(clean))
    for members in map(list, subsets):
        moved = parts[members].sum(0)
        for i in range(len(clean)):
            perturbed = clean[i] + moved - moved[i]
            f[i] += row_divergences(clean[i].expand_as(perturbed), perturbed, "jsd")
    return f.fill_diagonal_(0)


def all_pairs(f: Tensor) -> float:
    """D: the mean over all ordered pairs i != j."""
    n = len(f)
    return float(f.sum() / (n * (n - 1)))


def uniform_expectation(f: Tensor) -> float:
    """Every row is its own donor once in N draws, and adds 0 then: (1 - 1 / N) D."""
    return (1 - 1 / len(f)) * all_pairs(f)


def uniform_variance(f: Tensor, count: int) -> float:
    """Of K independent uniform permutations: sum d_ij^2 / (K N^2 (N - 1)), d centred both ways."""
    n = len(f)
    d = f - f.mean(0) - f.mean(1, keepdim=True) + f.mean()
    return float(d.square().sum() / (count * n**2 * (n - 1)))


def interaction(f: Tensor) -> Tensor:  # [N, N]
    """What is left of f off the diagonal without its mean and the effects of row and donor.

    Off the diagonal rows and columns sum to 0.
    """
    n = len(f)
    off = ~torch.eye(n, dtype=torch.bool)
    g = torch.where(off, f - all_pairs(f), 0.0)
    rows, columns = g.sum(1, keepdim=True), g.sum(0)
    row = ((n - 1) * rows + columns[:, None]) / (n * (n - 2))
    column = ((n - 1) * columns + rows[:, 0]) / (n * (n - 2))
    return torch.where(off, g - row - column, 0.0)


def reversals(count: int, num_rows: int) -> float:
    """How many shifts of a sample have their opposite in it, on average over its first shift."""
    n = num_rows
    total = 0
    for first in range(n - 1):
        shifts = {(first + step) % (n - 1) + 1 for step in range(count)}
        total += sum(n - shift in shifts for shift in shifts)
    return total / (n - 1)


def cyclic_variance(f: Tensor, count: int) -> float:
    """Of K shifts one after another in a random order of N >= 4 rows; 0 for K = N - 1."""
    n, k, rho = len(f), count, reversals(count, len(f))
    g = interaction(f)
    squares, opposite = float(g.square().sum()), float((g * g.T).sum())
    of_squares = k * (n - 2) * (n - 1 - k) - (k - rho)
    of_opposite = (n - 2) * (rho * (n - 1) - k**2) + (k - rho)
    total = squares * of_squares + opposite * of_opposite
    return total / (n**2 * k**2 * (n - 1) * (n - 2) * (n - 3))


def batch_variance(population: Tensor, num_rows: int) -> float:
    """Of D itself over batches of N rows drawn independently from these [A, A] pair values."""
    n = num_rows
    h = (population + population.T) / 2
    first, second = float(h.mean(1).var(correction=0)), float(h.var(correction=0))
    return (4 * (n - 2) * first + 2 * second) / (n * (n - 1))
