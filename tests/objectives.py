"""What the tests of MCRObjective share: targets of every task, a model, its loss."""

import torch
import torch.nn.functional as F
from inputs import generator, make_fusion, make_latents
from torch import nn

import mcr_fast
from mcr_fast import MCRLoss

N, C, D = 6, 3, 4
LABELS = torch.tensor([0, 1, 2, 0, 1, 1])
TABLE = mcr_fast.sample_permutations(3, N, generator=generator(5))
TARGETS = {
    "classification": LABELS,
    "multilabel": torch.rand(N, C, generator=generator(6), dtype=torch.float64).round(),
    "regression": torch.randn(N, C, generator=generator(7), dtype=torch.float64),
}
LOSS_OF = {
    "classification": F.cross_entropy,
    "multilabel": F.binary_cross_entropy_with_logits,
    "regression": F.mse_loss,
}
DIVERGENCE_OF = {"classification": "jsd", "multilabel": "binary_jsd", "regression": "mse"}


def heads(num_modalities=2):
    torch.manual_seed(3)
    return nn.ModuleList(nn.Linear(D, C).double() for _ in range(num_modalities))


def regularizer(task="classification", num_modalities=2, **options):
    return MCRLoss([D] * num_modalities, C, divergence=DIVERGENCE_OF[task], **options)


def setting(kind="linear", num_modalities=2):
    case = make_fusion(kind, 1, num_modalities, D)
    return case.fusion, make_latents(2, num_modalities, N, D, case.length), heads(num_modalities)


def pooled(z):
    return z if z.ndim == 2 else z.mean(tuple(range(1, z.ndim - 1)))
