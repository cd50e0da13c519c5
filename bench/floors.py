"""How fast a case can be at best, where that is known: on this CPU, or on a GPU by its rates."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter

import torch

from bench.case import Case
from bench.results import number, read, significant

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


NARROW, WIDE = 704, 4096  # bytes of the rows that are gathered, as of 174 classes and of 1000


@dataclass(frozen=True)
class Rates:
    """What a GPU does at best in a second, as `bench.gpu_rates` measures it."""

    copy: float  # bytes, read and written
    gather: float  # bytes of rows of 4 KB gathered from the L2 cache
    gather_narrow: float  # of rows of 704 bytes
    bfloat16: float  # operations of a product

    @classmethod
    def read(cls, path: Path) -> "Rates | None":
        """From a file of figures; None if one of them was not measured."""
        found = {row["what"]: number(row, "measured") for row in read(path)}
        rates = {name: found.get(what) for name, (what, _) in RATES.items()}
        known = {name: rate * 1e12 for name, rate in rates.items() if rate}
        return cls(**known) if len(known) == len(rates) else None

    def gathered(self, row_bytes: int) -> float:
        """Bytes a second of rows of that size."""
        return self.gather_narrow if row_bytes <= NARROW else self.gather


# fields of `Rates` -> what they are called among the figures, and in which unit
RATES = {
    "copy": ("copy bandwidth, read and written", "TB/s"),
    "gather": (f"gather of rows of {WIDE} bytes from the L2 cache", "TB/s"),
    "gather_narrow": (f"gather of rows of {NARROW} bytes from the L2 cache", "TB/s"),
    "bfloat16": ("bfloat16 product", "TFLOP/s"),
}


def rate_figure(name: str, rate: float) -> dict[str, str]:
    """A rate as it stands among the figures, with nothing to reach."""
    what, unit = RATES[name]
    return {"what": what, "measured": significant(rate / 1e12), "unit": unit}


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
        row_bytes = case.C * case.torch_dtype.itemsize
        gathered = case.num_pairs * row_bytes
        return (1 if mode == "fwd" else 2) * gathered / rates.gathered(row_bytes)
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
