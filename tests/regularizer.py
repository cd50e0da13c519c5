"""A small `MCRLoss` and what to call it with, for the tests of the module."""

import torch
from inputs import make_fusion, make_latents

from mcr_fast import MCRLoss

N, C, D = 6, 3, 4
LABELS = torch.tensor([0, 1, 2, 0, 1, 1])
WAYS = ("linear", "additive_head", "gated")  # the three ways through the package


def setting(kind="linear", num_modalities=2, num_rows=N, dtype=torch.float64):
    case = make_fusion(kind, 1, num_modalities, D, dtype)
    return case.fusion, make_latents(2, num_modalities, num_rows, D, case.length, dtype)


def mcr(num_modalities=2, **options):
    return MCRLoss([D] * num_modalities, C, **options)
