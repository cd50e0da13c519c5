"""The whole regularizer of a step, permutations drawn in it: MIPD and the contrastive term."""

from dataclasses import replace

import torch
from torch import Tensor

import mcr_fast
from bench import released
from bench.bench_nt_xent import pml_bytes
from bench.bench_permuted_divergence import released_bytes
from bench.case import Case, unique_cases
from bench.contrastive import no_pml
from bench.eager import mipd_eager, nt_xent_eager
from bench.inputs import Inputs
from bench.registry import Benchmark, Provider, usual

BASE = Case("mcr_loss", N=32, D=512, C=6, K=32, donors="drawn", start="latents")
CASES = [
    replace(BASE, N=n, C=c, headline=n in (32, 128, 512), quick=n == 32)
    for n, c in ((32, 6), (64, 6), (128, 28), (256, 101), (512, 174))
]
SWEEP = [replace(BASE, N=n, C=28, sweeps=("N",)) for n in (32, 64, 128, 256, 512)]
MIPD_WEIGHT, CONTRASTIVE_WEIGHT, TEMPERATURE = 0.1, 1.0, 0.5


def ours(inputs: Inputs, backend: str | None = None) -> Tensor:
    """`MCRLoss` with its defaults."""
    case = inputs.case
    if inputs.module is None:
        inputs.module = mcr_fast.MCRLoss(
            [case.D] * case.M,
            case.C,
            num_permutations=case.K,
            mipd_weight=MIPD_WEIGHT,
            contrastive_weight=CONTRASTIVE_WEIGHT,
            temperature=TEMPERATURE,
            backend=backend,
        )
    return inputs.module(
        inputs.latents, inputs.labels, fusion=inputs.linear, permutations=inputs.sample
    ).loss


def eager(inputs: Inputs) -> Tensor:
    """The same two terms in plain torch."""
    case, table = inputs.case, inputs.table
    if table is None:
        table = torch.rand(case.K, case.N, device=inputs.labels.device).argsort(1)
    contributions = inputs.fusion.contributions(inputs.latents)
    mipd = mipd_eager(contributions, inputs.bias, table)
    contrastive = nt_xent_eager(inputs.latents, inputs.all_labels(), TEMPERATURE)
    return MIPD_WEIGHT * mipd + CONTRASTIVE_WEIGHT * contrastive


def released_formulation(inputs: Inputs) -> Tensor:
    """What the published step adds: its MIPD and pytorch-metric-learning's NTXentLoss."""
    if inputs.module is None:
        inputs.module = released.published_nt_xent(TEMPERATURE)
    return released.released_step(
        inputs.latents,
        inputs.labels,
        inputs.linear,
        inputs.case.K,
        inputs.module,
        mipd_weight=MIPD_WEIGHT,
        contrastive_weight=CONTRASTIVE_WEIGHT,
        permutations=inputs.table,
    )


BENCHMARK = Benchmark(
    "mcr_loss",
    unique_cases(CASES, SWEEP),
    (
        *usual(
            ours,
            eager,
            lambda case: case.pair_bytes(16) + 12 * 4 * case.L**2,
            lambda case: case.pair_bytes(8) + case.dense_bytes(6),
        ),
        Provider(
            "released",
            released_formulation,
            lambda case: released_bytes(case) + pml_bytes(case),
            skip=no_pml,
            gives_value=False,
        ),
    ),
    axes={"N": "C = 28, K = 32, D = 512"},
)
