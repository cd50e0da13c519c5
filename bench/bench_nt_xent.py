"""The contrastive term as published: label-supervised NT-Xent over all modalities' embeddings."""

from functools import partial

import pytest
from torch import Tensor

import mcr_fast
from bench.contrastive import contrastive_cases, dense_bytes, no_pml, num_label_pairs, pml_loss
from bench.eager import nt_xent_eager
from bench.inputs import Inputs
from bench.registry import MODES, Benchmark, Case, Provider, compiled, unique_cases
from bench.test_regression import regression

TEMPERATURE = 0.5


def ours(inputs: Inputs, backend: str | None = None) -> Tensor:
    """The loss of this library."""
    return mcr_fast.functional.nt_xent(
        inputs.latents, inputs.labels, temperature=TEMPERATURE, backend=backend
    )


def eager(inputs: Inputs) -> Tensor:
    """The dense loss in plain torch."""
    return nt_xent_eager(inputs.latents, inputs.all_labels(), TEMPERATURE)


def pml(inputs: Inputs) -> Tensor:
    """The loss that the published code calls."""
    return pml_loss(inputs, "NTXentLoss", TEMPERATURE)


def pml_bytes(case: Case) -> float:
    """It keeps about 6 float matrices of (positive pairs) x (negative pairs)."""
    positive, negative = num_label_pairs(case)
    return 6 * 4 * positive * negative


EAGER = Provider("eager", eager, lambda case: dense_bytes(case, 6))
BENCHMARK = Benchmark(
    "nt_xent",
    unique_cases(contrastive_cases("nt_xent")),
    (
        Provider("ours", ours),
        Provider("reference", partial(ours, backend="reference"), lambda case: 12 * 4 * case.L**2),
        EAGER,
        compiled(EAGER),
        Provider("pml", pml, pml_bytes, skip=no_pml),
    ),
    axes={"L": "D = 512, C = 28"},
)


@pytest.mark.parametrize("case", [c for c in BENCHMARK.cases if c.quick], ids=lambda c: c.name)
@pytest.mark.parametrize("mode", MODES)
def test_nt_xent(benchmark, case: Case, mode: str) -> None:
    regression(benchmark, BENCHMARK, case, mode)
