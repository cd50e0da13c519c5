"""How fast a case can be at best on this machine, where that is known."""

from functools import cache
from time import perf_counter

import torch

from bench.registry import Case

# ns per (pair, class) element and core: the best fused row seen, forward (exp2, log2, their sums).
ROW_NS = 0.25


@cache
def gemm_rate(dtype: torch.dtype, num_threads: int) -> float:
    """FLOP/s of torch's matrix product here, the best of some, with the threads there are now."""
    size, width = 2048, 512
    x, y = torch.randn(size, width).to(dtype), torch.randn(width, size).to(dtype)
    out = torch.empty(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(20):
        start = perf_counter()
        torch.mm(x, y, out=out)
        best = min(best, perf_counter() - start)
    return 2 * size * size * width / best


def floor_seconds(case: Case, mode: str) -> float | None:
    """The least time of a case in a mode; None where none is known.

    Divergences, forward: every element once through the exponential and the logarithm. Contrastive:
    the similarities' product, and backward one more for the symmetric gradient.
    """
    threads = torch.get_num_threads()
    if case.op in ("permuted_divergence", "row_divergence") and mode == "fwd":
        return case.num_pairs * case.C * ROW_NS * 1e-9 / threads
    if case.op in ("nt_xent", "sup_con") and mode != "bwd":
        products = 1 if mode == "fwd" else 2
        return products * 2 * case.L**2 * case.D / gemm_rate(case.torch_dtype, threads)
    return None


def element_ns(case: Case, seconds: float) -> float | None:
    """Nanoseconds per (pair, class) element and core; every subset's pair is one of its own."""
    if case.op not in ("permuted_divergence", "row_divergence"):
        return None
    return seconds * 1e9 * torch.get_num_threads() / (case.num_pairs * case.C)
