"""Statistics over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean difference and half the width of its 95 % interval."""

    mean: float
    half_width: float

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:+.1f} ± {self.half_width:.1f}"


BySeed = Mapping[int, float]  # a figure of each seed


def paired(first: BySeed, second: BySeed) -> Interval:
    """first - second over the seeds that both have, by Student's t; NaN with less than two."""
    seeds = sorted(first.keys() & second.keys())
    differences = np.array([first[seed] - second[seed] for seed in seeds])
    if len(differences) < 2:
        return Interval(math.nan, math.nan)
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    t = stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)
    return Interval(float(differences.mean()), float(t * error))


def mean(figures: BySeed) -> float:
    """Over the seeds; NaN without any."""
    return float(np.mean(list(figures.values()))) if figures else math.nan


def ranks(table: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean rank of each name over the lines, 1 for the highest figure, equal ones share.

    Names that a line lacks have no rank.
    """
    names = [name for name in (table[0] if table else {}) if all(name in line for line in table)]
    if not names:
        return {}
    lines = [stats.rankdata([-line[name] for name in names]) for line in table]
    return dict(zip(names, np.mean(lines, axis=0).tolist(), strict=True))
