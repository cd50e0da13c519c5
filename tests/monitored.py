"""What the tests of the monitor share: a small model with two modalities, and its steps."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import mcr_fast

D, C = 5, 4
NAMES = ("image", "audio")


def close(found, wanted, rel=1e-5):
    assert found == pytest.approx(wanted, rel=rel, abs=1e-9, nan_ok=True)


class Game:
    """Two latents, a linear fusion, heads; steps of Algorithm 1."""

    def __init__(self, rows=9, modalities=2, dtype=torch.float32, seed=0, fusion=None, **options):
        torch.manual_seed(seed)
        self.inputs = [torch.randn(rows, D, dtype=dtype) for _ in range(modalities)]
        self.encoders = nn.ModuleList(nn.Linear(D, D, dtype=dtype) for _ in range(modalities))
        self.fusion = fusion or nn.Linear(modalities * D, C, dtype=dtype)
        self.heads = nn.ModuleList(nn.Linear(D, C, dtype=dtype) for _ in range(modalities))
        self.mcr = mcr_fast.MCRLoss([D] * modalities, C, num_permutations=3, **options)
        self.labels = torch.arange(rows) % C

    def forward(self, **given):
        """The latents, the output and the unimodal logits."""
        latents = [encode(x) for encode, x in zip(self.encoders, self.inputs, strict=True)]
        labels = given.pop("labels", self.labels)
        out = self.mcr(latents, labels, fusion=self.fusion, **given)
        return latents, out, [head(z) for head, z in zip(self.heads, latents, strict=True)]

    def step(self, monitor, **given):
        """A whole step that a monitor sees; its output."""
        latents, out, alone = self.forward()
        monitor.update(out, self.labels, alone, latents=latents, **given)
        loss = cross_entropy(out.logits.float(), self.labels) + out.loss
        (loss + sum(cross_entropy(x.float(), self.labels) for x in alone)).backward()
        return out
