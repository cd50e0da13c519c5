"""The mean squared error of the CEB term, without concatenating the latents."""

from dataclasses import replace
from functools import partial

import pytest
from torch import Tensor

import mcr_fast
from bench.eager import reconstruction_loss_eager
from bench.inputs import Inputs
from bench.registry import MODES, Benchmark, Case, Provider, compiled, unique_cases
from bench.test_regression import regression

BASE = Case("reconstruction_loss", N=32, D=512)
CASES = [
    replace(BASE, N=n, sweeps=("N",), quick=n == 32, headline=n == 2048)
    for n in (32, 128, 512, 2048, 8192)
]


def ours(inputs: Inputs, backend: str | None = None) -> Tensor:
    """The loss of this library."""
    return mcr_fast.functional.reconstruction_loss(
        inputs.latents, inputs.reconstruction, backend=backend
    )


def eager(inputs: Inputs) -> Tensor:
    """The loss of plain torch."""
    return reconstruction_loss_eager(inputs.latents, inputs.reconstruction)


EAGER = Provider("eager", eager)
BENCHMARK = Benchmark(
    "reconstruction_loss",
    unique_cases(CASES, [replace(BASE, N=2048, dtype="bfloat16")]),
    (
        Provider("ours", ours),
        Provider("reference", partial(ours, backend="reference")),
        EAGER,
        compiled(EAGER),
    ),
    axes={"N": "two modalities, D = 512"},
)


@pytest.mark.parametrize("case", [c for c in BENCHMARK.cases if c.quick], ids=lambda c: c.name)
@pytest.mark.parametrize("mode", MODES)
def test_reconstruction_loss(benchmark, case: Case, mode: str) -> None:
    regression(benchmark, BENCHMARK, case, mode)
