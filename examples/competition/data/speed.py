"""The speed sweep: the view that says more is learned more slowly.

Ten classes, equally likely. Each view is the mean of the row's class and Gaussian noise of its own,
so that both carry the label, in part redundantly: the first one more (`SEPARATION`). Then the first
view's inputs are multiplied by s. Nothing that is known about the label changes, and an encoder can
undo it; but Adam moves a weight by about the learning rate a step, so that its features grow s
times as fast. Meanwhile the other view fits the training rows, and what is left of the loss has
nothing to teach.

The constants, and the width of the encoders, were chosen by joint and unimodal training alone, on
seeds 100 and 101: joint training is to be above 90 % at s = 1 and to fall by ten points or more,
and the first view alone is to be learned at every s, so that it ends above joint training.
"""

import torch

from ..model import Batch
from .base import Data, Family

CLASSES = 10
WIDTHS = (16, 32)  # of the views
SEPARATION = (3.6, 2.4)  # length of the classes' means, on average; the noise has deviation 1
TRAIN, VALIDATION, TEST = 512, 1000, 10000


def load(scale: float, seed: int) -> Data:
    """Classes' means, rows and noise of a seed; `scale` multiplies the first view only."""
    generator = torch.Generator().manual_seed(1000 + seed)
    means = [
        length * torch.randn(CLASSES, width, generator=generator) / width**0.5
        for length, width in zip(SEPARATION, WIDTHS, strict=True)
    ]

    def rows(number: int) -> Batch:
        labels = torch.randint(CLASSES, (number,), generator=generator)
        strong, weak = (
            mean[labels] + torch.randn(number, mean.shape[1], generator=generator) for mean in means
        )
        return Batch((scale * strong, weak), labels)

    return Data(rows(TRAIN), rows(VALIDATION), rows(TEST), CLASSES)


SPEED = Family(
    "Speed sweep (synthetic)",
    ("strong view", "weak view"),
    "s",
    (1.0, 0.1, 0.05, 0.02),
    load,
    batch_size=64,
)
