"""The models whose latents the draws are measured on: a task of two speeds, some steps trained.

Two modalities are those of `python -m bench two_speed`. The third one, for subsets of two members,
is noisy like the fast one, with means of its own. Algorithm 1 trains them, three times the unimodal
losses and `MCRLoss` with its defaults.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import mcr_fast
from bench import two_speed
from bench.two_speed import BATCH, FAST_NOISE, FAST_WIDTH, LATENT, NUM_CLASSES, SLOW_WIDTH

WIDTHS = (FAST_WIDTH, SLOW_WIDTH, FAST_WIDTH)
UNIMODAL_WEIGHT = 3.0


@dataclass(frozen=True)
class Batch:
    views: list[Tensor]  # M tensors [N, width]
    labels: Tensor  # [N]


def make_batch(num_modalities: int, num_rows: int, generator: torch.Generator) -> Batch:
    """Fresh rows of the task: batches are independent."""
    split = two_speed.make_split(num_rows, generator)
    views = [split.fast, split.slow]
    if num_modalities == 3:
        g = torch.Generator().manual_seed(6)
        means = torch.randn(NUM_CLASSES, FAST_WIDTH, generator=g)[split.labels]
        views.append(means + FAST_NOISE * torch.randn(means.shape, generator=generator))
    return Batch(views, split.labels)


class Model(nn.Module):
    """Encoders, a linear head on the latents of each, and a linear fusion of all."""

    rows: Batch  # that it was trained on

    def __init__(self, num_modalities: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, LATENT))
            for width in WIDTHS[:num_modalities]
        )
        self.heads = nn.ModuleList(nn.Linear(LATENT, NUM_CLASSES) for _ in self.encoders)
        self.fusion = nn.Linear(num_modalities * LATENT, NUM_CLASSES)
        self.latent_dims = [LATENT] * num_modalities

    def fresh_rows(self, num_rows: int, generator: torch.Generator) -> Batch:
        """Independent of what it was trained on."""
        return make_batch(len(self.latent_dims), num_rows, generator)

    def training_rows(self, num_rows: int, generator: torch.Generator) -> Batch:
        """A batch of its training set, as a step sees it."""
        index = torch.randperm(len(self.rows.labels), generator=generator)[:num_rows]
        return Batch([x[index] for x in self.rows.views], self.rows.labels[index])

    def encode(self, views: Sequence[Tensor]) -> list[Tensor]:
        return [encode(x) for encode, x in zip(self.encoders, views, strict=True)]

    def contributions(self, latents: Sequence[Tensor]) -> Tensor:  # [M, N, C], the bias in one
        weights = self.fusion.weight.split(self.latent_dims, dim=1)
        parts = torch.stack([z @ w.T for z, w in zip(latents, weights, strict=True)])
        return torch.cat([parts[:1] + self.fusion.bias, parts[1:]])

    def loss(self, batch: Batch, regularizer: mcr_fast.MCRLoss) -> Tensor:
        """Algorithm 1."""
        latents = self.encode(batch.views)
        heads = zip(self.heads, latents, strict=True)
        unimodal = torch.stack([cross_entropy(head(z), batch.labels) for head, z in heads]).sum()
        out = regularizer(latents, batch.labels, fusion=self.fusion)
        return cross_entropy(out.logits, batch.labels) + UNIMODAL_WEIGHT * unimodal + out.loss


def trained(num_modalities: int, steps: int, seed: int = 0) -> Model:
    """After this many steps of Adam, on a training set as small as that of two_speed."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    model = Model(num_modalities)
    regularizer = mcr_fast.MCRLoss(model.latent_dims, NUM_CLASSES)
    optimizer = torch.optim.Adam(model.parameters(), lr=two_speed.LEARNING_RATE)
    model.rows = model.fresh_rows(two_speed.TRAIN, generator)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(model.training_rows(BATCH, generator), regularizer).backward()
        optimizer.step()
    return model
