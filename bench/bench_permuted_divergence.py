"""MIPD: the divergence of permuted modalities, from latents and from contributions."""

from dataclasses import replace

from torch import Tensor

import mcr_fast
from bench import released
from bench.case import Case, unique_cases
from bench.eager import mipd_eager
from bench.inputs import Inputs
from bench.registry import Benchmark, Provider, usual

BASE = Case("permuted_divergence", N=128, D=512, C=28, K=32, donors="uniform", start="latents")
# batch size and classes of the data sets that the paper trains on, or close to them
PUBLISHED = [
    replace(BASE, N=n, C=c, headline=n in (32, 128, 512), quick=n == 32)
    for n, c in ((32, 6), (64, 6), (128, 28), (256, 101), (512, 174))
]
SWEEPS = [
    *(replace(BASE, N=n, sweeps=("N",)) for n in (32, 64, 128, 256, 512, 1024)),
    *(replace(BASE, K=k, sweeps=("K",)) for k in (4, 8, 16, 32, 64, 128)),
    *(replace(BASE, C=c, sweeps=("C",)) for c in (6, 16, 28, 64, 174, 400, 1000)),
]
LARGE = replace(BASE, N=512, C=174)
DONORS = [
    *(replace(BASE, N=n, C=6, K=0, donors="exhaustive", quick=n == 32) for n in (32, 128)),
    *(replace(case, donors="cyclic") for case in (BASE, LARGE)),
]
# the kernel alone, three modalities, 16 bits
OTHERS = [
    replace(LARGE, D=0, start="contributions", headline=True),
    replace(BASE, M=3),
    replace(LARGE, dtype="bfloat16"),
]


def contributions(inputs: Inputs) -> Tensor:  # [M, N, C]
    """The products of the linear fusion, with what they cost; for every other provider."""
    if inputs.contributions is not None:
        return inputs.contributions
    assert inputs.fusion is not None
    return inputs.fusion.contributions(inputs.latents)


def ours(inputs: Inputs, backend: str | None = None) -> Tensor:
    """L_MIPD of this library: from the latents where a case starts there."""
    if inputs.contributions is None and backend is None:
        return -mcr_fast.functional.linear_permuted_divergence(
            inputs.latents, inputs.linear.weight, inputs.sample, bias=inputs.bias, subsets="single"
        ).sum()
    return -mcr_fast.functional.permuted_divergence(
        contributions(inputs),
        inputs.sample,
        bias=inputs.bias,
        subsets="single",
        backend=backend,
    ).sum()


def eager(inputs: Inputs) -> Tensor:
    """L_MIPD in plain torch."""
    table = None if inputs.case.donors == "exhaustive" else inputs.table
    return mipd_eager(contributions(inputs), inputs.bias, table)


def released_formulation(inputs: Inputs) -> Tensor:
    """The published scalar, on the same permutations."""
    return released.released_mipd(
        inputs.latents, inputs.linear, inputs.case.K, permutations=inputs.table
    )


def two_latents(case: Case) -> str | None:
    """Why the released formulation cannot run a case."""
    if case.start != "latents":
        return "starts from latents"
    return "has two modalities" if case.M != 2 else None


def released_bytes(case: Case) -> float:
    """Copies of the latents, and about 10 tensors [K*N, C] for each of 6 divergences."""
    rows = case.num_pairs / case.M
    return 4 * rows * (4 * case.D + 60 * case.C)


BENCHMARK = Benchmark(
    "permuted_divergence",
    unique_cases(PUBLISHED, SWEEPS, DONORS, OTHERS),
    (
        *usual(ours, eager, lambda case: case.pair_bytes(16), lambda case: case.pair_bytes(8)),
        Provider(
            "released",
            released_formulation,
            released_bytes,
            skip=two_latents,
            gives_value=False,
        ),
    ),
    axes={
        "N": "C = 28, K = 32, D = 512",
        "K": "N = 128, C = 28, D = 512",
        "C": "N = 128, K = 32, D = 512",
    },
)
