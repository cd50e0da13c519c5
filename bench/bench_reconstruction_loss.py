"""The mean squared error of the CEB term, without concatenating the latents."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

import mcr_fast
from bench.case import Case, unique_cases
from bench.inputs import Inputs
from bench.registry import Benchmark, usual

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
    """Plain torch's own fused loss against the concatenation."""
    return mse_loss(inputs.reconstruction, torch.cat(inputs.latents, dim=1))


BENCHMARK = Benchmark(
    "reconstruction_loss",
    unique_cases(CASES, [replace(BASE, N=2048, dtype="bfloat16")]),
    usual(ours, eager),
    axes={"N": "two modalities, D = 512"},
)
