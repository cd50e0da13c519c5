"""What is measured: a provider is one way to compute an op; every op has cases and providers."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial

import torch
from torch import Tensor

from bench.case import Case
from bench.inputs import Inputs
from mcr_fast.ops.registry import OPS

# an op that is made of another one is measured with that
STEMS = (*(op for op, row in OPS.items() if not row.made_of), "mcr_loss")
MODES = ("fwd", "bwd", "full")
# A provider that would need more than this is skipped, and the row says how much it would need.
MEMORY_LIMIT = 6e9

Run = Callable[[Inputs], Tensor]
Bytes = Callable[[Case], float]


def no_estimate(case: Case) -> float:
    """A provider whose memory is small."""
    return 0.0


@dataclass(frozen=True)
class Provider:
    """One way to compute an op: `run(inputs)` gives the loss, attached to the graph."""

    name: str
    run: Run
    bytes_needed: Bytes = no_estimate
    skip: Callable[[Case], str | None] = lambda case: None
    compiled: bool = False  # runs through torch.compile
    gives_value: bool = True  # the published greedy scalar is identically 0

    def reason_to_skip(self, case: Case) -> str | None:
        """Why this provider cannot run the case here, None if it can."""
        missing = compiler_missing() if self.compiled else None
        return self.skip(case) or missing or self.too_large(case, MEMORY_LIMIT)

    def too_large(self, case: Case, limit: float) -> str | None:
        """What it would need, if that is more bytes than the limit."""
        needed = self.bytes_needed(case)
        return f"would need {needed / 1e9:,.0f} GB" if needed > limit else None

    def forward(self, inputs: Inputs) -> Callable[[], Tensor]:
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


def usual(
    ours: Callable[..., Tensor],  # (inputs, backend=None)
    eager: Run,
    reference_bytes: Bytes = no_estimate,
    eager_bytes: Bytes = no_estimate,
) -> tuple[Provider, ...]:
    """The providers that every op has: ours, its reference, best eager, torch.compile of that."""
    best = Provider("eager", eager, eager_bytes)
    return (
        Provider("ours", ours),
        Provider("reference", partial(ours, backend="reference"), reference_bytes),
        best,
        replace(best, name="compile", compiled=True),
    )


@cache
def compiler_missing() -> str | None:
    """Why torch.compile does not work here, None if it does."""
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(4))
    except Exception as error:  # whatever is missing: a C++ compiler, the headers of Python
        return f"torch.compile does not work here: {str(error).splitlines()[0]}"
    return None


@cache
def benchmarks() -> dict[str, Benchmark]:
    """Every op's benchmark, by stem."""
    return {stem: importlib.import_module(f"bench.bench_{stem}").BENCHMARK for stem in STEMS}


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
