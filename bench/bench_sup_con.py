"""Supervised contrastive loss, the other choice for the contrastive term."""

from torch import Tensor

import mcr_fast
from bench.contrastive import contrastive_cases, no_pml, pml_loss
from bench.eager import sup_con_eager
from bench.inputs import Inputs
from bench.registry import Benchmark, Provider, usual

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


BENCHMARK = Benchmark(
    "sup_con",
    contrastive_cases("sup_con"),
    (
        *usual(ours, eager, lambda case: 10 * 4 * case.L**2, lambda case: case.dense_bytes(5)),
        Provider("pml", pml, lambda case: case.dense_bytes(16), skip=no_pml),
    ),
    axes={"L": "D = 512, C = 28"},
)
