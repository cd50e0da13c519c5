"""What the draw of donors does for accuracy: the task of two speeds, at equal steps and equal time.

Seeds redraw data, first weights and batches, alike for every draw, so differences are those of
equal seeds. At equal time a draw gets as many steps as fit into the time of the
default's, by the processor's time of a step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from time import thread_time

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from bench import two_speed
from bench.timer import Step, race

UNIMODAL_WEIGHT = 3.0
STEPS = two_speed.EPOCHS * two_speed.TRAIN // two_speed.BATCH
ROUNDS = 20
BY_STEPS, BY_TIME = "steps", "time"


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
# both budgets, which are one for the default
ROWS_A_SEED = len(SETTINGS) * (2 * len(ARMS) - 1)


def step_times(setting: Setting, seconds: float) -> dict[Arm, float]:
    """Milliseconds of a training step, optimizer included: medians of turns."""
    rows = two_speed.make_split(setting.batch, torch.Generator().manual_seed(0))

    def step(arm: Arm) -> Step:
        torch.manual_seed(0)
        model = two_speed.Model.fresh()
        loss = setting.form(arm)(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=two_speed.LEARNING_RATE)

        def run(_: Tensor | None) -> None:
            optimizer.zero_grad()
            loss(rows.fast, rows.slow, rows.labels).backward()
            optimizer.step()

        return Step(run)

    found = race({str(arm): step(arm) for arm in ARMS}, seconds, ROUNDS, thread_time)
    return {arm: 1e3 * found[str(arm)].p50 for arm in ARMS}


def run(seeds: int, steps: int, seconds: float) -> Iterator[dict[str, str]]:
    """A row for each seed, setting, arm and budget; seed by seed, so that any part is balanced."""
    taken = {setting: step_times(setting, seconds) for setting in SETTINGS}
    for seed, setting, arm, budget in product(range(seeds), SETTINGS, ARMS, (BY_STEPS, BY_TIME)):
        ms, allowed = taken[setting][arm], taken[setting][DEFAULT]
        if budget == BY_TIME and arm == DEFAULT:
            continue  # its own time
        fits = steps if budget == BY_STEPS else round(steps * allowed / ms)
        how = {"steps": fits, "batch": setting.batch}
        found = two_speed.train(setting.form(arm), seed, two_speed.Model.fresh, **how)
        yield {
            **{"batch": str(setting.batch), "weight": str(setting.weight)},
            **{"scheme": arm.scheme, "K": str(arm.count), "seed": str(seed)},
            **{"budget": budget, "steps": str(fits), "step_ms": f"{ms:.4f}"},
            "accuracy": f"{found.accuracy:.3f}",
        }


def interval(differences: list[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval by Student's t."""
    n = len(differences)
    if n < 2:
        return fmean(differences), float("nan")
    error = float(np.std(differences, ddof=1)) / n**0.5
    return fmean(differences), float(stats.t.ppf(0.975, n - 1)) * error
