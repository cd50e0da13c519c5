"""The divergence of perturbed logits from the clean rows they belong to."""

from dataclasses import replace

from torch import Tensor

import mcr_fast
from bench import released
from bench.case import Case, unique_cases
from bench.eager import row_divergence_eager
from bench.inputs import Inputs
from bench.registry import Benchmark, Provider, usual

BASE = Case("row_divergence", N=128, C=28, K=32, M=0)
CASES = [
    *(replace(BASE, N=n, sweeps=("N",)) for n in (32, 64, 128, 256, 512, 1024)),
    *(replace(BASE, C=c, sweeps=("C",)) for c in (6, 16, 28, 64, 174, 400, 1000)),
]
OTHERS = [
    replace(BASE, N=32, C=6, quick=True),
    replace(BASE, N=512, C=174, headline=True),
    replace(BASE, N=512, C=174, dtype="bfloat16"),
]


def ours(inputs: Inputs, backend: str | None = None) -> Tensor:
    """The mean divergence of this library."""
    return mcr_fast.functional.row_divergence(
        inputs.perturbed, inputs.clean, inputs.rows, backend=backend
    )


def released_formulation(inputs: Inputs) -> Tensor:
    """The published divergence: the clean logits are repeated."""
    return released.jensen_shannon(inputs.clean.repeat(inputs.case.K, 1), inputs.perturbed)


BENCHMARK = Benchmark(
    "row_divergence",
    unique_cases(CASES, OTHERS),
    (
        *usual(
            ours,
            lambda inputs: row_divergence_eager(inputs.perturbed, inputs.clean),
            lambda case: case.pair_bytes(16),
            lambda case: case.pair_bytes(8),
        ),
        Provider("released", released_formulation, lambda case: case.pair_bytes(12)),
    ),
    axes={"N": "32 perturbed rows each, C = 28", "C": "N = 128, 32 perturbed rows each"},
)
