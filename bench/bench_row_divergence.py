"""The divergence of perturbed logits from the clean rows they belong to."""

from dataclasses import replace
from functools import partial

import pytest
from torch import Tensor

import mcr_fast
from bench import released
from bench.eager import row_divergence_eager
from bench.inputs import Inputs
from bench.registry import MODES, Benchmark, Case, Provider, compiled, unique_cases
from bench.test_regression import regression

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


def eager(inputs: Inputs) -> Tensor:
    """The mean divergence in plain torch."""
    return row_divergence_eager(inputs.perturbed, inputs.clean)


def released_formulation(inputs: Inputs) -> Tensor:
    """The published divergence: the clean logits are repeated."""
    return released.jensen_shannon(inputs.clean.repeat(inputs.case.K, 1), inputs.perturbed)


EAGER = Provider("eager", eager, lambda case: 4 * 8 * case.num_pairs * case.C)
BENCHMARK = Benchmark(
    "row_divergence",
    unique_cases(CASES, OTHERS),
    (
        Provider("ours", ours),
        Provider(
            "reference",
            partial(ours, backend="reference"),
            lambda case: 4 * 16 * case.num_pairs * case.C,
        ),
        EAGER,
        compiled(EAGER),
        Provider("released", released_formulation, lambda case: 4 * 12 * case.num_pairs * case.C),
    ),
    axes={"N": "32 perturbed rows each, C = 28", "C": "N = 128, 32 perturbed rows each"},
)


@pytest.mark.parametrize("case", [c for c in BENCHMARK.cases if c.quick], ids=lambda c: c.name)
@pytest.mark.parametrize("mode", MODES)
def test_row_divergence(benchmark, case: Case, mode: str) -> None:
    regression(benchmark, BENCHMARK, case, mode)
