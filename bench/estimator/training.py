"""What the draw of donors does for accuracy: the task of two speeds, at equal steps.

Seeds redraw data, first weights and batches, alike for every draw, so differences are those of
equal seeds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from statistics import fmean

import numpy as np
from scipy import stats

from bench import two_speed

UNIMODAL_WEIGHT = 3.0
STEPS = two_speed.EPOCHS * two_speed.TRAIN // two_speed.BATCH


@dataclass(frozen=True)
class Arm:
    """One setting of the regularizer; count 0 leaves L_MIPD out."""

    scheme: str
    count: int | str

    def options(self, weight: float) -> dict[str, float | int | str]:
        if self.count == 0:
            return {"mipd_weight": 0.0}
        return {"mipd_weight": weight, "scheme": self.scheme, "num_permutations": self.count}


DEFAULT = Arm("cyclic", 32)
ARMS = (
    DEFAULT,
    *(Arm("cyclic", count) for count in (1, 4, "all")),
    *(Arm("uniform", count) for count in (1, 4, 32)),
    Arm("", 0),
)


@dataclass(frozen=True)
class Setting:
    """What all arms have in common."""

    batch: int
    weight: float  # of L_MIPD

    def form(self, arm: Arm) -> Callable[[two_speed.Model], two_speed.BatchLoss]:
        return two_speed.algorithm(UNIMODAL_WEIGHT, arm.options(self.weight))


SETTINGS = (Setting(64, 0.1), Setting(128, 0.3))
ROWS_A_SEED = len(SETTINGS) * len(ARMS)


def run(seeds: int, steps: int) -> Iterator[dict[str, str]]:
    """A row for each seed, setting and arm; seed by seed, so that any part is balanced."""
    for seed, setting, arm in product(range(seeds), SETTINGS, ARMS):
        how = {"steps": steps, "batch": setting.batch}
        found = two_speed.train(setting.form(arm), seed, two_speed.Model.fresh, **how)
        yield {
            **{"batch": str(setting.batch), "weight": str(setting.weight), "steps": str(steps)},
            **{"scheme": arm.scheme, "K": str(arm.count), "seed": str(seed)},
            "accuracy": f"{found.accuracy:.3f}",
        }


def interval(differences: list[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval by Student's t."""
    n = len(differences)
    if n < 2:
        return fmean(differences), float("nan")
    error = float(np.std(differences, ddof=1)) / n**0.5
    return fmean(differences), float(stats.t.ppf(0.975, n - 1)) * error
