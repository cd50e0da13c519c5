"""HTAD: seven tasks at home, by sound and by wrist acceleration; for research only.

1,386 rows of features in `data/htad.csv` of the package `multiviewstacking`: 36 of sound (MFCC), 16
of an accelerometer. The data set (Garcia-Ceja et al., 2021) may be used for research; nothing of it
is in this repository.
"""

import csv
from functools import cache

import numpy as np

from .base import Data, Family, package_file, split_views

PACKAGE, FILE = "multiviewstacking", "data/htad.csv"
TRAIN, VALIDATION = 256, 400


@cache
def table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sound [N, 36], acceleration [N, 16], labels [N] in the order of the classes' names."""
    with package_file(PACKAGE, FILE).open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    names = np.array([row[0] for row in rows])
    numbers = np.array([row[1:] for row in rows], dtype=np.float64)
    first = np.array([name.startswith("v1_") for name in header[1:]])
    return numbers[:, first], numbers[:, ~first], np.unique(names, return_inverse=True)[1]


def load(value: float, seed: int) -> Data:
    """A seed redraws the split; there is one setting."""
    sound, acceleration, labels = table()
    return split_views((sound, acceleration), labels, TRAIN, VALIDATION, seed)


HTAD = Family("HTAD", ("sound", "acceleration"), "scale", (1.0,), load, needs=PACKAGE)
