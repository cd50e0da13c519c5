"""Permuted divergence: choice of backend."""

from torch import Tensor

from mcr_fast.ops._backend import resolve
from mcr_fast.reference.permuted_divergence import permuted_divergence_reference


def permuted_divergence(
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
    backend: str | None,
) -> Tensor:  # [S]
    """D_S of each subset, its gradient routed by `strategy` and `clean_path`."""
    resolve("permuted_divergence", backend, contributions.device)
    return permuted_divergence_reference(
        contributions,
        bias,
        order,
        donors,
        labels,
        present,
        sample_weight,
        subsets=subsets,
        strategy=strategy,
        clean_path=clean_path,
        divergence=divergence,
        exclude=exclude,
    )
