"""scikit-learn's digits as two modalities: the left and the right half of each image."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

NUM_CLASSES = 10
PIXELS = 32  # of one half: 8 rows, 4 columns
SPLIT_SEED = 0


@dataclass(frozen=True)
class Split:
    """Images cut in two, and their labels."""

    halves: tuple[Tensor, Tensor]  # left and right, each [N, 32]
    labels: Tensor  # [N]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Tensor) -> "Split":
        """The rows that an index [B] names."""
        left, right = self.halves
        return Split((left[index], right[index]), self.labels[index])


@dataclass(frozen=True)
class Digits:
    """Train without noise, since every epoch draws its own; the other two with noise drawn once."""

    train: Split
    validation: Split
    test: Split
    noise: float  # standard deviation, in units of a pixel's own


def degrade(split: Split, noise: float, generator: torch.Generator) -> Split:
    """The right half seen by a noisy sensor; the left half as it is."""
    left, right = split.halves
    return Split(
        (left, right + noise * torch.randn(right.shape, generator=generator)), split.labels
    )


def load_halves(noise: float) -> Digits:
    """20 % of the 1,797 images to train on, 40 % to validate, 40 % to test; always the same."""
    digits = load_digits()
    images = digits.images.astype(np.float32) / 16  # [1797, 8, 8] in 0..1
    halves = [images[:, :, :4].reshape(-1, PIXELS), images[:, :, 4:].reshape(-1, PIXELS)]
    labels = digits.target
    train, rest = train_test_split(
        np.arange(len(labels)), train_size=0.2, stratify=labels, random_state=SPLIT_SEED
    )
    validation, test = train_test_split(
        rest, train_size=0.5, stratify=labels[rest], random_state=SPLIT_SEED
    )
    # Mean and deviation of the training images only. Some pixels are blank in almost every image:
    # without a floor, one grey value there would outweigh the whole digit.
    scaled = [(x - x[train].mean(0)) / np.maximum(x[train].std(0), 0.05) for x in halves]

    def split(index: np.ndarray) -> Split:
        left, right = (torch.from_numpy(x[index]) for x in scaled)
        return Split((left, right), torch.from_numpy(labels[index]))

    generator = torch.Generator().manual_seed(SPLIT_SEED)
    return Digits(
        split(train),
        degrade(split(validation), noise, generator),
        degrade(split(test), noise, generator),
        noise,
    )
