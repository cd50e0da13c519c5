"""How fast a case can be at best, where that is known: on this CPU, or on a GPU by its rates."""

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from time import perf_counter

import torch

from bench.case import Case

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


@dataclass(frozen=True)
class Rates:
    """What a GPU does at best in a second, as `bench.gpu_rates` measures it."""

    copy: float  # bytes, read and written
    gather: float  # bytes of rows gathered from the L2 cache
    bfloat16: float  # operations of a product

    @classmethod
    def read(cls, path: Path) -> "Rates | None":
        """As `write` wrote them; None if they were not measured."""
        return cls(**json.loads(path.read_text("utf-8"))) if path.exists() else None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def floor_seconds(case: Case, mode: str) -> float | None:
    """The least time of a case on this CPU; None where none is known.

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


def bytes_moved(case: Case, mode: str) -> float:
    """The fewest bytes of a row divergence: inputs read once, gradients written once."""
    once = (case.num_pairs + case.N) * case.C * case.torch_dtype.itemsize
    return once if mode == "fwd" else 2 * once


def gpu_floor_seconds(case: Case, mode: str, rates: Rates | None) -> float | None:
    """The least time of a case on a GPU; None where no measured rate gives one.

    Uniform donors: every pair's row comes from the L2 cache, once forward and once for the donor
    side. Contrastive: half the similarities forward, twice as many operations as the whole product
    with the gradient.
    """
    if rates is None:
        return None
    if case.op == "permuted_divergence" and case.donors == "uniform":
        gathered = case.num_pairs * case.C * case.torch_dtype.itemsize
        return (1 if mode == "fwd" else 2) * gathered / rates.gather
    if case.op == "row_divergence":
        return bytes_moved(case, mode) / rates.copy
    if case.op == "nt_xent":
        return (1 if mode == "fwd" else 4) * case.L**2 * case.D / rates.bfloat16
    return None


def element_ns(case: Case, seconds: float) -> float | None:
    """Nanoseconds per (pair, class) element and core; every subset's pair is one of its own."""
    if case.op not in ("permuted_divergence", "row_divergence"):
        return None
    return seconds * 1e9 * torch.get_num_threads() / (case.num_pairs * case.C)
