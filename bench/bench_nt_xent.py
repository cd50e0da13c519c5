"""The contrastive term as published: label-supervised NT-Xent over all modalities' embeddings."""

from torch import Tensor

import mcr_fast
from bench.case import Case
from bench.contrastive import contrastive_cases, no_pml, num_label_pairs, pml_loss
from bench.eager import nt_xent_eager
from bench.inputs import Inputs
from bench.registry import Benchmark, Provider, usual

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


BENCHMARK = Benchmark(
    "nt_xent",
    contrastive_cases("nt_xent"),
    (
        *usual(ours, eager, lambda case: 12 * 4 * case.L**2, lambda case: case.dense_bytes(6)),
        Provider("pml", pml, pml_bytes, skip=no_pml),
    ),
    axes={"L": "D = 512, C = 28"},
)
