"""The paper's Figure 1: from mostly shared to mostly unique information. Our reading of it.

The paper varies U1 / (U1 + S), where U1 is what the first modality alone knows of the label and S
what both know. Which data it is drawn from we could not find with certainty. The released code
ships FactorCL's synthetic generator (Liang et al., NeurIPS 2023): independent Gaussian blocks, one
for each view and one for both, which are mapped linearly into the views, and a binary label by the
sign of the mean of some of their numbers; whether the figure uses it we could not confirm.

Here a class has a mean in a latent space of 20 numbers, a row has its class's mean and noise. The
first view mixes all 20 linearly. The second one mixes those of the share that is shared, and in the
place of the others numbers that have nothing to do with the label. Every latent number says equally
much of the label on average, so that the share of unshared numbers is the ratio. Both views have
further noise of their own, so that what is shared is better known from both.

All inputs have one scale: no view is slow by construction. The ratio is not varied at a constant
total: as it grows, the second view knows less, the two together know less as well, and all methods
fall. So methods are to be compared at one ratio, not one method across ratios.

The constants were chosen by joint and unimodal training alone, on seeds 100 and 101, for joint
training near 93 % at .1 and near 86 % at .9.
"""

import torch

from ..model import Batch
from .base import Data, Family

CLASSES = 8
LATENT, WIDTH = 20, 32  # of the class's evidence, of a view
SEPARATION, SPREAD = 2.6, 0.5  # of the classes' means, deviation within a class
NOISE = 0.7  # of a view's own
TRAIN, VALIDATION, TEST = 512, 1000, 10000


def load(ratio: float, seed: int) -> Data:
    """Classes, mixings, rows and noise of a seed, at a share of unique evidence."""
    generator = torch.Generator().manual_seed(2000 + seed)
    unique = round(ratio * LATENT)
    means = SEPARATION * torch.randn(CLASSES, LATENT, generator=generator) / LATENT**0.5
    mixings = torch.randn(2, LATENT, WIDTH, generator=generator) / LATENT**0.5

    def rows(number: int) -> Batch:
        labels = torch.randint(CLASSES, (number,), generator=generator)
        first = means[labels] + SPREAD * torch.randn(number, LATENT, generator=generator)
        unrelated = torch.randn(number, LATENT, generator=generator)
        second = torch.cat([unrelated[:, :unique], first[:, unique:]], dim=1)
        noise = NOISE * torch.randn(2, number, WIDTH, generator=generator)
        return Batch((first @ mixings[0] + noise[0], second @ mixings[1] + noise[1]), labels)

    return Data(rows(TRAIN), rows(VALIDATION), rows(TEST), CLASSES)


FIGURE1 = Family(
    "Figure 1 (synthetic, our reading)",
    ("view with unique information", "other view"),
    "U1/(U1+S)",
    (0.1, 0.5, 0.7, 0.9),
    load,
    batch_size=64,
)
