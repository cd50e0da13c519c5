"""What the two contrastive benchmarks share: their sizes, and pytorch-metric-learning."""

import importlib
import importlib.util
from dataclasses import replace

import torch
from torch import Tensor

from bench.case import Case, unique_cases
from bench.inputs import Inputs


def contrastive_cases(op: str) -> tuple[Case, ...]:
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


def num_label_pairs(case: Case) -> tuple[float, float]:
    """How many ordered pairs have equal and different labels, on average over the draws."""
    # M rows share each of the N draws
    equal = case.L * (case.M - 1 + case.M * (case.N - 1) / case.C)
    return equal, case.L * case.M * (case.N - 1) * (1 - 1 / case.C)


def no_pml(case: Case) -> str | None:
    """Why pytorch-metric-learning cannot run here, None if it can."""
    missing = importlib.util.find_spec("pytorch_metric_learning") is None
    return "pytorch-metric-learning is not installed" if missing else None


def pml_loss(inputs: Inputs, name: str, temperature: float) -> Tensor:
    """A loss of pytorch-metric-learning on the concatenated modalities with repeated labels."""
    if inputs.module is None:
        losses = importlib.import_module("pytorch_metric_learning.losses")
        inputs.module = getattr(losses, name)(temperature=temperature)
    return inputs.module(torch.cat(inputs.latents), inputs.all_labels())
