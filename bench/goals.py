"""Figures that ours must reach, on a CPU or a GPU, and how they are judged."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.case import Case
from bench.floors import Rates, bytes_moved
from bench.results import NAMES, Row, number, significant

# what a goal can judge besides a provider's time: (column of the results, unit); less is better
COLUMNS = {"ms": ("p50_ms", "ms"), "MB": ("peak_mb", "MB"), "ns": ("element_ns", "ns")}


@dataclass(frozen=True)
class Goal:
    """A figure of ours that a row of the table has to reach.

    `against` is a provider, whose time over that of `of` is judged, a key of COLUMNS, or "copy":
    the bytes it must move, over its time and the bandwidth of a copy.
    """

    against: str
    value: float
    mode: str = "full"
    of: str = "ours"

    @property
    def provider(self) -> str | None:
        """The provider whose time it takes, if any."""
        return None if self.against in (*COLUMNS, "copy") else self.against


@dataclass(frozen=True)
class TimedRow:
    """One size with its goals.

    `graph` replays ours from a CUDA graph too, and whoever a goal holds it against there;
    `step_only` leaves the forward alone out.
    """

    label: str
    case: Case
    goals: tuple[Goal, ...] = ()
    note: str = ""
    graph: bool = False
    quick: bool = False
    step_only: bool = False

    def modes_of(self, provider: str) -> tuple[str, ...]:
        """What is timed of a provider on a GPU."""
        # compiling takes longer than all else, and only a whole step has a goal against it
        if self.step_only or provider == "compile":
            return ("full",)
        judged = any((g.mode, g.provider) == ("full_graph", provider) for g in self.goals)
        replayed = judged or (self.graph and provider.startswith("ours"))
        return ("full", "fwd", "full_graph") if replayed else ("full", "fwd")

    @property
    def judged(self) -> str:
        """The mode of its first goal."""
        return self.goals[0].mode if self.goals else "full"


def outcome(
    what: str,
    goal: float,
    measured: float,  # NaN where it was not measured
    unit: str = "x",
    *,
    at_least: bool = True,
    detail: str = "",
) -> dict[str, str]:
    """One figure against its goal, as it stands in targets.csv."""
    reached = measured >= goal if at_least else measured <= goal
    unknown = math.isnan(measured)
    return {
        "what": what,
        "goal": f"{'>=' if at_least else '<='} {significant(goal)}",
        "measured": "" if unknown else significant(measured, 3),
        "unit": unit,
        "passed": "not measured" if unknown else "pass" if reached else "missed",
        "detail": detail,
    }


def _judge(goal: Goal, row: TimedRow, lines: Sequence[Row], rates: Rates | None) -> dict[str, str]:
    found = {
        line["provider"]: line
        for line in lines
        if (line["op"], line["case"], line["mode"]) == (row.case.op, row.case.name, goal.mode)
    }

    def cell(provider: str, column: str = "p50_ms") -> float:
        value = number(found.get(provider, {}), column)
        return math.nan if value is None else value

    ours = cell(goal.of)
    what = row.label + ", graph-replayed" * (goal.mode == "full_graph")
    times = "" if math.isnan(ours) else f"{significant(ours)} ms"
    if goal.against in COLUMNS:
        column, unit = COLUMNS[goal.against]
        detail = "; ".join(filter(None, ("" if goal.against == "ms" else times, row.note)))
        measured = cell(goal.of, column)
        return outcome(what, goal.value, measured, unit, at_least=False, detail=detail)
    if goal.against == "copy":
        rate = rates.copy if rates else math.nan
        share = bytes_moved(row.case, goal.mode) / (ours / 1e3 * rate)
        return outcome(what, goal.value, share, "of copy bandwidth", detail=times)
    theirs, name = cell(goal.against), NAMES.get(goal.against, goal.against)
    if not math.isnan(theirs):
        times = f"{times}, {name} {significant(theirs)} ms"
    return outcome(f"{what}, against {name}", goal.value, theirs / ours, detail=times)


def verdicts(
    rows: Iterable[TimedRow], lines: Sequence[Row], rates: Rates | None = None
) -> list[dict[str, str]]:
    """Every goal as a row of targets.csv: pass, missed or not measured."""
    return [_judge(goal, row, lines, rates) for row in rows for goal in row.goals]
