"""Statistics over seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean difference, half the width of its 95 % interval, and the two-sided p of 0."""

    mean: float
    half_width: float
    p: float = math.nan
    seeds: int = 0

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    @property
    def measured(self) -> bool:
        """Whether there were two seeds at least."""
        return not math.isnan(self.mean)

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ± {self.half_width:.1f}" if self.measured else "-"


BySeed = Mapping[int, float]  # a figure of each seed


def of_differences(differences: Sequence[float]) -> Interval:
    """Of a sample's mean, by Student's t; NaN with less than two."""
    sample = np.array(differences)
    if len(sample) < 2:
        return Interval(math.nan, math.nan, seeds=len(sample))
    center, error = float(sample.mean()), float(sample.std(ddof=1)) / math.sqrt(len(sample))
    t = stats.t(len(sample) - 1)
    p = 2 * float(t.sf(abs(center) / error)) if error else float(center == 0)
    return Interval(center, float(t.ppf((1 + CONFIDENCE) / 2)) * error, p, len(sample))


def paired(first: BySeed, second: BySeed) -> Interval:
    """first - second over the seeds that both have."""
    seeds = sorted(first.keys() & second.keys())
    return of_differences([first[seed] - second[seed] for seed in seeds])


def averaged(parts: Sequence[BySeed]) -> dict[int, float]:
    """The mean over several settings, of the seeds that all of them have."""
    seeds = set.intersection(*(set(part) for part in parts)) if parts else set()
    return {seed: float(np.mean([part[seed] for part in parts])) for seed in sorted(seeds)}


def holm(p: Iterable[float]) -> list[float]:
    """Holm's step-down correction of p values, in their order; NaN is not counted."""
    found = np.array(list(p), dtype=np.float64)
    adjusted = np.full_like(found, np.nan)
    order = [i for i in np.argsort(found) if not math.isnan(found[i])]
    least = 0.0
    for position, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - position) * found[i]))
        adjusted[i] = least
    return [float(each) for each in adjusted]


def mean(figures: BySeed) -> float:
    """Over the seeds; NaN without any."""
    return float(np.mean(list(figures.values()))) if figures else math.nan


@dataclass(frozen=True)
class Rank:
    """A mean rank with a bootstrap interval over seeds."""

    mean: float
    low: float
    high: float
    top: bool  # its distance to the lowest mean rank has an interval that holds 0


def ranks(by_seed: Mapping[int, Sequence[Mapping[str, float]]]) -> dict[str, Rank]:
    """Mean ranks over lines (name -> figure) and seeds; 1 for the highest, equal ones share.

    Names that a line lacks have no rank. Seeds are drawn anew, all lines of a seed together:
    percentiles of 2,000 draws. With few seeds such intervals are somewhat too narrow.
    """
    lines = [line for of_seed in by_seed.values() for line in of_seed]
    names = [name for name in (lines[0] if lines else {}) if all(name in line for line in lines)]
    if not names:
        return {}
    table = np.array(
        [
            np.mean([stats.rankdata([-line[name] for name in names]) for line in of_seed], axis=0)
            for of_seed in by_seed.values()
        ]
    )  # [seeds, names]
    means = table.mean(0)
    drawn = np.random.default_rng(0).integers(len(table), size=(2000, len(table)))
    resampled = table[drawn].mean(1)  # [draws, names]
    behind = resampled - resampled[:, [means.argmin()]]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail], axis=0)
    nearest = np.percentile(behind, tail, axis=0)
    return {
        name: Rank(*(float(x[i]) for x in (means, low, high)), top=bool(nearest[i] <= 0))
        for i, name in enumerate(names)
    }
