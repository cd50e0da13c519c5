"""What is measured: a case is a size, a provider one way to compute it; every op has both."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mcr_fast.ops.registry import OPS

if TYPE_CHECKING:
    from bench.inputs import Inputs

# An op that is made of another one is among that one's cases.
STEMS = (*(op for op, row in OPS.items() if not row.made_of), "mcr_loss")
MODES = ("fwd", "bwd", "full")
# A provider that would need more than this is skipped, and the row says how much it would need.
MEMORY_LIMIT = 6e9

Forward = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """One size of one op. A field that the op does not know is 0 or empty."""

    op: str
    N: int = 0
    D: int = 0
    C: int = 0
    K: int = 0
    M: int = 2
    dtype: str = "float32"
    donors: str = ""  # "uniform", "cyclic", "exhaustive"; "drawn": each call draws its own
    start: str = ""  # "latents": with the linear fusion; "contributions": without
    sweeps: tuple[str, ...] = ()  # the axes of plots on which this case is a point
    headline: bool = False  # stands in the README's table
    quick: bool = False  # runs with --quick and in the regression tests

    @property
    def L(self) -> int:
        """Embedding rows of all modalities."""
        return self.M * self.N

    @property
    def name(self) -> str:
        """The key of the case in results."""
        rows = f"L{self.L}" if self.op in ("nt_xent", "sup_con") else f"N{self.N}"
        sizes = [rows, *(f"{axis}{value}" for axis in "CKDM" if (value := getattr(self, axis)))]
        return "_".join([*sizes, self.dtype, *filter(None, (self.donors, self.start))])

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def num_pairs(self) -> int:
        """Pairs (row, donor) of all single-modality subsets: rows of the divergence."""
        if self.op == "row_divergence":
            return self.K * self.N
        permutations = self.N - 1 if self.donors == "exhaustive" else self.K
        return self.M * permutations * self.N

    def tiny(self) -> "Case":
        """The same code path on next to no data."""
        return replace(self, N=min(self.N, 8), D=min(self.D, 8), C=min(self.C, 4), K=min(self.K, 4))


def no_estimate(case: Case) -> float:
    """A provider whose memory is small."""
    return 0.0


@dataclass(frozen=True)
class Provider:
    """One way to compute an op: `run(inputs)` gives the loss, attached to the graph."""

    name: str
    run: Callable[["Inputs"], Tensor]
    bytes_needed: Callable[[Case], float] = no_estimate
    skip: Callable[[Case], str | None] = lambda case: None
    compiled: bool = False  # runs through torch.compile
    gives_value: bool = True  # the published greedy scalar is identically 0

    def reason_to_skip(self, case: Case) -> str | None:
        """Why this provider cannot run the case here, None if it can."""
        reason = self.skip(case)
        if reason is None and self.compiled:
            reason = compiler_missing()
        return reason or self.too_large(case, MEMORY_LIMIT)

    def too_large(self, case: Case, limit: float) -> str | None:
        """What it would need, if that is more bytes than the limit."""
        needed = self.bytes_needed(case)
        return f"would need {needed / 1e9:,.0f} GB" if needed > limit else None

    def forward(self, inputs: "Inputs") -> Forward:
        """The call to measure."""
        run = partial(self.run, inputs)
        if not self.compiled:
            return run
        # a graph of its own for every case: otherwise the second size would get dynamic shapes
        torch.compiler.reset()
        return torch.compile(run, dynamic=False)


@dataclass(frozen=True)
class Benchmark:
    """An op with its cases and providers; the first provider is ours."""

    op: str
    cases: tuple[Case, ...]
    providers: tuple[Provider, ...]
    # the axes of its plots, with the other sizes there in words
    axes: dict[str, str] = field(default_factory=dict)

    def provider(self, name: str) -> Provider:
        """The provider of that name."""
        return next(p for p in self.providers if p.name == name)


def compiled(eager: Provider) -> Provider:
    """The torch.compile provider of an eager one."""
    return replace(eager, name="compile", compiled=True)


@cache
def compiler_missing() -> str | None:
    """Why torch.compile does not work here, None if it does."""
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(4))
    except Exception as error:  # whatever is missing: a C++ compiler, the headers of Python
        return f"torch.compile does not work here: {str(error).splitlines()[0]}"
    return None


def unique_cases(*groups: list[Case]) -> tuple[Case, ...]:
    """One case per name, with the roles of all its namesakes."""
    found: dict[str, Case] = {}
    for case in (case for group in groups for case in group):
        known = found.setdefault(case.name, case)
        found[case.name] = replace(
            known,
            sweeps=tuple(dict.fromkeys(known.sweeps + case.sweeps)),
            headline=known.headline or case.headline,
            quick=known.quick or case.quick,
        )
    return tuple(found.values())


@cache
def benchmarks() -> dict[str, Benchmark]:
    """Every op's benchmark, by stem."""
    found = {}
    for stem in STEMS:
        module = importlib.import_module(f"bench.bench_{stem}")
        found[stem] = module.BENCHMARK
    return found


def default_modes(case: Case) -> tuple[str, ...]:
    """Points of a sweep are measured as a training step runs them, the others in every mode."""
    only_swept = case.sweeps and not case.headline and not case.quick
    return ("full",) if only_swept else MODES


def select(ops: list[str], pattern: str, *, quick: bool) -> list[tuple[Benchmark, Case]]:
    """The cases whose name contains the pattern, of the ops named (all if none is)."""
    return [
        (benchmark, case)
        for stem, benchmark in benchmarks().items()
        for case in benchmark.cases
        if (not ops or stem in ops) and pattern in case.name and (case.quick or not quick)
    ]
