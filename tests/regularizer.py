"""A small `MCRLoss` and what to call it with, for the tests of the module and of its kernels."""

from typing import Any

import torch
from inputs import make_fusion, make_latents
from torch import nn
from torch.nn.functional import cross_entropy

from mcr_fast import MCRLoss, sample_permutations

N, C, D = 6, 3, 4
LABELS = torch.tensor([0, 1, 2, 0, 1, 1])
WAYS = ("linear", "additive_head", "gated")  # the three ways through the package


def setting(kind="linear", num_modalities=2, num_rows=N, dtype=torch.float64):
    case = make_fusion(kind, 1, num_modalities, D, dtype)
    return case.fusion, make_latents(2, num_modalities, num_rows, D, case.length, dtype)


def mcr(num_modalities=2, **options):
    return MCRLoss([D] * num_modalities, C, **options)


# a linear fusion, all of whose terms are one op: rows, modalities, options, masked
LINEAR_CASES = [
    *((rows, 2, {}, False) for rows in (4, 0, 1, 2)),
    (0, 3, {}, True),
    (4, 3, {"strategy": "independent", "contrastive": "sup_con", "exclude": "self"}, True),
    (7, 2, {"clean_path": "routed", "contrastive_weight": 0.3, "ceb_weight": 0.5}, False),
]
# of all its outputs
LINEAR_LOSSES = (
    lambda out, labels: out.loss + cross_entropy(out.logits, labels, reduction="sum"),
    lambda out, _: 2 * out.mipd + 0.3 * out.contrastive,
    lambda out, _: out.logits.square().sum(),
)


class LinearStep:
    """One of the cases: `latents`, `fusion`, the module and what else it is `given`."""

    width, classes = 5, 3

    def __init__(
        self,
        backend: str,
        rows: int,
        modalities: int,
        options: dict,
        masked: bool,
        scheme: str = "uniform",
    ):
        torch.manual_seed(rows)
        latents = (torch.randn(rows, self.width) for _ in range(modalities))
        self.latents = [z.requires_grad_() for z in latents]
        self.fusion = nn.Linear(modalities * self.width, self.classes, bias=not masked)
        self.labels = torch.arange(rows) % 2
        widths, options = [self.width] * modalities, {"num_permutations": 2} | options
        self.mcr = MCRLoss(widths, self.classes, backend=backend, **options)
        present = torch.rand(rows, modalities) < 0.8 if masked else None
        donors = sample_permutations(2, rows, scheme=scheme) if rows > 1 else None
        self.given = {"present": present, "permutations": donors}

    def leaves(self) -> list[torch.Tensor]:
        return [*self.latents, *self.fusion.parameters()]

    def run(self) -> Any:
        return self.mcr(self.latents, self.labels, fusion=self.fusion, **self.given)
