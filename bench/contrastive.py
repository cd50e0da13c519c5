"""What the two contrastive benchmarks share: their sizes, and who runs them."""

import importlib
import importlib.util
from dataclasses import replace

import torch
from torch import Tensor

import mcr_fast
from bench.case import Case, unique_cases
from bench.inputs import Inputs
from bench.registry import Benchmark, Bytes, Provider, Run, usual


def _cases(op: str) -> tuple[Case, ...]:
    """Two modalities of L / 2 rows; the published default, a sweep over L, 16 bits."""
    base = Case(op, N=32, D=512, C=6)
    sweep = [replace(base, N=n, C=28, sweeps=("L",)) for n in (32, 64, 128, 256, 512, 1024, 2048)]
    many_classes = [
        replace(base, N=128, C=28),
        replace(base, N=2048, C=174, headline=True),
        replace(base, N=2048, C=174, dtype="bfloat16", headline=True),
        replace(base, N=8192, C=174),
    ]
    return unique_cases([replace(base, headline=True, quick=True), *sweep, *many_classes])


def no_pml(case: Case) -> str | None:
    """Why pytorch-metric-learning cannot run here, None if it can."""
    missing = importlib.util.find_spec("pytorch_metric_learning") is None
    return "pytorch-metric-learning is not installed" if missing else None


def contrastive_benchmark(
    op: str,
    temperature: float,
    eager: Run,
    *,
    reference_matrices: int,  # float32 [L, L], at the most
    eager_matrices: int,  # [L, L]
    pml: str,  # the loss of pytorch-metric-learning
    pml_bytes: Bytes,
) -> Benchmark:
    """Its loss of this library against plain torch and pytorch-metric-learning."""

    def ours(inputs: Inputs, backend: str | None = None) -> Tensor:
        loss = getattr(mcr_fast.functional, op)
        return loss(inputs.latents, inputs.labels, temperature=temperature, backend=backend)

    def theirs(inputs: Inputs) -> Tensor:
        """Takes the concatenated modalities with repeated labels."""
        if inputs.module is None:
            losses = importlib.import_module("pytorch_metric_learning.losses")
            inputs.module = getattr(losses, pml)(temperature=temperature)
        return inputs.module(torch.cat(inputs.latents), inputs.all_labels())

    providers = usual(
        ours,
        eager,
        lambda case: 4 * reference_matrices * case.L**2,
        lambda case: case.dense_bytes(eager_matrices),
    )
    pml_provider = Provider("pml", theirs, pml_bytes, skip=no_pml)
    return Benchmark(op, _cases(op), (*providers, pml_provider), axes={"L": "D = 512, C = 28"})
