"""Supervised contrastive loss, the other choice for the contrastive term."""

from functools import partial

import pytest
from torch import Tensor

import mcr_fast
from bench.contrastive import contrastive_cases, dense_bytes, no_pml, pml_loss
from bench.eager import sup_con_eager
from bench.inputs import Inputs
from bench.registry import MODES, Benchmark, Case, Provider, compiled, unique_cases
from bench.test_regression import regression

TEMPERATURE = 0.1


def ours(inputs: Inputs, backend: str | None = None) -> Tensor:
    """The loss of this library."""
    return mcr_fast.functional.sup_con(
        inputs.latents, inputs.labels, temperature=TEMPERATURE, backend=backend
    )


def eager(inputs: Inputs) -> Tensor:
    """The dense loss in plain torch."""
    return sup_con_eager(inputs.latents, inputs.all_labels(), TEMPERATURE, inputs.case.C)


def pml(inputs: Inputs) -> Tensor:
    """The loss of pytorch-metric-learning; its masks are dense floats."""
    return pml_loss(inputs, "SupConLoss", TEMPERATURE)


EAGER = Provider("eager", eager, lambda case: dense_bytes(case, 5))
BENCHMARK = Benchmark(
    "sup_con",
    unique_cases(contrastive_cases("sup_con")),
    (
        Provider("ours", ours),
        Provider("reference", partial(ours, backend="reference"), lambda case: 10 * 4 * case.L**2),
        EAGER,
        compiled(EAGER),
        Provider("pml", pml, lambda case: dense_bytes(case, 16), skip=no_pml),
    ),
    axes={"L": "D = 512, C = 28"},
)


@pytest.mark.parametrize("case", [c for c in BENCHMARK.cases if c.quick], ids=lambda c: c.name)
@pytest.mark.parametrize("mode", MODES)
def test_sup_con(benchmark, case: Case, mode: str) -> None:
    regression(benchmark, BENCHMARK, case, mode)
