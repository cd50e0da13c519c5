"""The tables, and what they say in words; all from the runs, nothing is known beforehand."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from digits_compare import Run
from digits_evaluate import ALONE
from scipy import stats
from tabulate import tabulate

GOAL = 1.0  # points of MCR over joint training where one modality learns late, at the lower end
RIVALS = ("joint", "multi-loss", "ensemble")
PARTS = {"L_MIPD": "MCR without L_MIPD", "L_Con": "MCR without L_Con"}

Setting = dict[str, list[Run]]  # by method, in the order of the seeds
Names = tuple[str, str]


@dataclass(frozen=True)
class Interval:
    """A mean difference in points, and the 95 % interval around it."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no clear difference"

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def paired_interval(ours: Sequence[float], others: Sequence[float]) -> Interval:
    """Student's t over the differences of equal seeds, of shares 0 to 1.

    A seed draws split, pairing, first weights and batches, so its differences have all of that.
    """
    gains = 100 * (np.array(ours) - np.array(others))  # [seeds]
    mean, error = float(gains.mean()), float(stats.sem(gains)) if len(gains) > 1 else math.nan
    half = 0.0 if error == 0 else error * float(stats.t.ppf(0.975, len(gains) - 1))
    return Interval(mean, mean - half, mean + half)


def by_setting(runs: Iterable[Run]) -> dict[str, Setting]:
    found: dict[str, Setting] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        found.setdefault(run.setting, {}).setdefault(run.method, []).append(run)
    return found


def accuracies(runs: Iterable[Run], lost: int | None = None) -> list[float]:
    """Of each seed, with both sensors or without one."""
    return [run.scores.accuracy if lost is None else run.scores.lost[lost] for run in runs]


def against(setting: Setting, other: str, lost: int | None = None) -> Interval:
    return paired_interval(accuracies(setting["MCR"], lost), accuracies(setting[other], lost))


def titled(method: str, names: Names) -> str:
    """A method as it is printed: which of the modalities is alone."""
    return f"{names[ALONE[method]]} alone" if method in ALONE else method


def spread(shares: Iterable[float]) -> str:
    """Mean and sample standard deviation, in percent."""
    x = 100 * np.array(list(shares))
    return "-" if np.isnan(x).any() else f"{x.mean():.1f} ± {x.std(ddof=1):.1f}"


def importance_of(runs: Sequence[Run]) -> float:
    return 100 * float(np.mean([run.scores.importance for run in runs]))


def methods_table(setting: Setting, names: Names, form: str = "simple") -> str:
    headers = ["", "test accuracy, %", *(f"{name} lost, %" for name in names)]
    headers.append(f"importance of the {names[1]}, %")
    rows = [
        (
            titled(method, names),
            *(spread(accuracies(runs, lost)) for lost in (None, 0, 1)),
            spread(run.scores.importance for run in runs),
        )
        for method, runs in setting.items()
    ]
    return tabulate(
        rows, headers, tablefmt=form, colalign=("left", *["right"] * 4), disable_numparse=True
    )


def differences_table(setting: Setting, names: Names, form: str = "simple") -> str:
    """MCR against the others, over the same seeds."""
    rows: list[tuple[str, str, str, str, str]] = []
    for other in (*RIVALS, *PARTS.values()):
        whole = against(setting, other)
        lost = [str(against(setting, other, modality)) for modality in range(2)]
        rows.append((f"MCR against {other}", str(whole), whole.verdict, *lost))
    headers = ("points (95 % interval)", "accuracy", "", *(f"{name} lost" for name in names))
    return tabulate(
        rows, headers, tablefmt=form, colalign=("left", "right", "left", "right", "right")
    )


def ensemble_words(setting: Setting) -> str:
    found = against(setting, "ensemble")
    words = {
        "better": "MCR is above the ensemble, in one model",
        "worse": "the ensemble of two models wins",
        "no clear difference": "the ensemble of two models ties with MCR",
    }
    return f"{words[found.verdict]}: MCR against it {found} points, {found.verdict}"


def importance_words(setting: Setting, names: Names) -> str:
    shares = {method: importance_of(setting[method]) for method in ("joint", "multi-loss", "MCR")}
    listed = ", ".join(f"{method} {share:.1f} %" for method, share in shares.items())
    return f"importance of the {names[1]} at the end: {listed}"


def lost_words(setting: Setting, names: Names) -> str:
    means = {m: 100 * np.mean(accuracies(setting[m], 0)) for m in ("joint", "multi-loss", "MCR")}
    listed = ", ".join(f"{method} {mean:.1f} %" for method, mean in means.items())
    return f"right with the {names[0]} lost: {listed}"


def part_words(setting: Setting) -> str:
    """What each term of the regularizer gave: MCR against MCR without it."""
    found = {term: against(setting, method) for term, method in PARTS.items()}
    return "; ".join(f"{term} gave {gain} points, {_sure(gain)}" for term, gain in found.items())


def _sure(gain: Interval) -> str:
    return {"better": "a gain", "worse": "a loss"}.get(gain.verdict, "no clear difference")


def goal_words(setting: Setting, name: str) -> str:
    """Whether this run showed what the demo is for."""
    found = against(setting, "joint")
    aim = f'"{name}", MCR against joint: {found} points. The goal is a lower end above +{GOAL:.0f}'
    if found.low > GOAL:
        return f"{aim}: reached."
    shown = {"better": "smaller", "worse": "a loss"}.get(found.verdict, "not distinct from none")
    return f"{aim}: NOT reached in this run; the gain is {shown}."


def words_on(setting: Setting, names: Names) -> str:
    words = [
        importance_words(setting, names),
        lost_words(setting, names),
        part_words(setting),
        ensemble_words(setting),
    ]
    return "\n".join(f"- {line[0].upper()}{line[1:]}." for line in words)


def report(runs: Sequence[Run], names: Names, form: str = "simple") -> str:
    """Everything that is said, for a terminal or (form="github") for a page."""
    settings = by_setting(runs)
    parts = []
    for name, setting in settings.items():
        title = f"**{name}**" if form == "github" else f"{name}\n{'=' * len(name)}"
        tables = (methods_table(setting, names, form), differences_table(setting, names, form))
        parts += [title, *tables, words_on(setting, names)]
    last = list(settings)[-1]
    return "\n\n".join([*parts, goal_words(settings[last], last)])


def short_report(runs: Sequence[Run], names: Names) -> str:
    """For a page's first screen: the setting in which one modality is learned late."""
    name, setting = list(by_setting(runs).items())[-1]
    return f"{methods_table(setting, names, 'github')}\n\n{goal_words(setting, name)}"


def explanation(seeds: int, rows: int, tries: int, names: Names) -> str:
    """How the tables came about."""
    sentences = (
        f"Mean ± standard deviation over {seeds} seeds; each draws pairs, split ({rows} test "
        "rows), first weights and batches anew, alike for all methods.",
        "Intervals: Student's t over the seeds' differences.",
        "A sensor is lost by putting its latents' mean over the training rows in their place, for "
        "every method.",
        f"Importance of the {names[1]}: its share in how far predictions move (Jensen-Shannon "
        "divergence) when one modality comes from another row.",
        f"Weights of multi-loss and MCR: the best of {tries} tries each for digits seen and heard, "
        "on validation rows of other seeds; MCR without a term keeps the other weights.",
    )
    return textwrap.fill(" ".join(sentences), width=100)
