"""What a run has found so far, and the files that hold it.

Every file is written as a whole beside its place and then moved there, so that a run that is killed
leaves whole files with all that was finished. Files of a folder that a device machine sends back
are counted: there are seven.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import results
from bench.floors import Rates
from bench.goals import TimedRow, verdicts
from bench.gpu import report
from bench.gpu.rows import backend_of
from bench.gpu.sanitize import is_sanitized
from bench.model.figures import predicted_ms
from bench.results import ENVIRONMENT, Row, number, significant

CHECKS, TARGETS, TIMES = "correctness.csv", "targets.csv", "times.csv"
SIZES, SUMMARY, PLOT = "sizes.csv", "summary.txt", "gpu.png"
CHECK_COLUMNS = (
    *("op", "backend", "case", "checks", "passed", "detail", "seconds"),
    *ENVIRONMENT,
)
CHECK_NAMES = CHECK_COLUMNS[:4]
FIGURES = ("what", "goal", "measured", "predicted", "unit", "passed", "detail", *ENVIRONMENT)
FIGURE_NAMES = ("what", "goal")  # a figure without a goal has nothing to reach


def expected(row: TimedRow, provider: str, mode: str) -> str:
    """Milliseconds by the model; empty where it has none."""
    backend = backend_of(row, provider)
    time = predicted_ms(row.label, backend, mode) if backend else None
    return results.significant(time, 3)


@dataclass
class Record:
    """One run's results; `checked` holds the rows of this run alone."""

    out: Path
    stamp: Row
    timed: Sequence[TimedRow] = ()
    sizes: Sequence[TimedRow] = ()
    checked: dict[tuple[str, ...], Row] = field(default_factory=dict)
    kept: list[dict[str, str]] = field(default_factory=list)  # checks of an earlier run
    unable: list[str] = field(default_factory=list)  # what ours did not finish, and why

    def start(self, parts: Iterable[str]) -> None:
        """Drop what this run measures again: old lines must not stand for what it does not get to.

        The checks and the sanitizer's rows share a file, and either leaves the other's.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        cases = {(row.case.op, row.case.name) for row in (*self.timed, *self.sizes)}
        self._keep(TIMES, results.COLUMNS, lambda row: (row["op"], row["case"]) not in cases)
        again = {*parts}

        def stays(row: Row) -> bool:
            return ("sanitize" if is_sanitized(row) else "check") not in again

        self.kept = self._keep(CHECKS, CHECK_COLUMNS, stays)

    def _rows(self, name: str) -> list[dict[str, str]]:
        return results.read(self.out / name)

    def _keep(
        self, name: str, columns: tuple[str, ...], wanted: Callable[[Row], bool]
    ) -> list[dict[str, str]]:
        rows = self._rows(name)
        kept = [row for row in rows if wanted(row)]
        if len(kept) < len(rows):
            results.write(self.out / name, kept, columns)
        return kept

    def check(self, rows: Iterable[Row]) -> None:
        """Rows of the checks, which may replace those that had no turn before."""
        for row in rows:
            self.checked[results.key(row, CHECK_NAMES)] = {**self.stamp, **row}
        results.write(self.out / CHECKS, [*self.kept, *self.checked.values()], CHECK_COLUMNS)

    def figures(self, rows: Iterable[Row]) -> None:
        """Figures and targets, in the place of all that have their names."""
        stamped = [{**self.stamp, **row} for row in rows]
        names = {row["what"] for row in stamped}
        if stamped:
            kept = [row for row in self._rows(TARGETS) if row["what"] not in names]
            results.write(self.out / TARGETS, [*kept, *stamped], FIGURES)

    def lines(self) -> list[dict[str, str]]:
        """The lines of its rows, each provider's ratio to ours filled in and written back."""
        cases = {(row.case.op, row.case.name) for row in (*self.timed, *self.sizes)}
        lines = self._rows(TIMES)
        medians = {results.key(line): number(line, "p50_ms") for line in lines}
        for line in lines:
            base = medians.get((line["op"], line["case"], line["mode"], "ours"))
            own = number(line, "p50_ms")
            line["ratio_to_ours"] = significant(own / base if own and base else None)
        if lines:
            results.write(self.out / TIMES, lines)
        return [line for line in lines if (line["op"], line["case"]) in cases]

    def write(self) -> str:
        """Everything that follows from the other files; the text of the summary."""
        lines = self.lines()
        targets = self.targets(lines)
        self.figures([*targets, *self.beside_the_model(lines)])
        compared = report.write_sizes(self.out / SIZES, self.sizes, lines, self.stamp)
        figures = [row for row in self._rows(TARGETS) if not row["goal"]]
        text = report.summary(
            [*self.checked.values()], targets, self.failures(lines), figures, self.stamp, compared
        )
        results.write_text(self.out / SUMMARY, text)
        return text

    def targets(self, lines: Sequence[Row]) -> list[dict[str, str]]:
        """Every goal judged, with what the model has for those in milliseconds."""
        rows = [*self.timed, *self.sizes]
        judged = verdicts(rows, lines, Rates.read(self.out / TARGETS))
        goals = [(row, goal) for row in rows for goal in row.goals]
        return [
            {
                **found,
                "predicted": expected(row, goal.of, goal.mode) if goal.against == "ms" else "",
            }
            for (row, goal), found in zip(goals, judged, strict=True)
        ]

    def beside_the_model(self, lines: Sequence[Row]) -> list[dict[str, str]]:
        """Each time of ours beside the one that the model has, where it has one."""
        rows = {(row.case.op, row.case.name): row for row in (*self.sizes, *self.timed)}
        found = []
        for line in lines:
            row = rows[line["op"], line["case"]]
            figure = expected(row, line["provider"], line["mode"])
            if figure and line["p50_ms"]:
                what = f"{row.label}, {line['provider']} {line['mode']}"
                measured = {"what": what, "measured": line["p50_ms"], "unit": "ms"}
                found.append({**measured, "predicted": figure})
        return found

    def failures(self, lines: Iterable[Row]) -> list[str]:
        """Where ours did not finish, or could not run at all."""
        return self.unable + [
            f"{line['op']} {line['case']} {line['mode']} {line['provider']}: {line['skipped']}"
            for line in lines
            if line["provider"].startswith("ours") and line["skipped"]
        ]

    def draw(self) -> str:
        """The plot of the rows with goals; why there is none, empty if there is."""
        drawn = self.out / f"tmp.{PLOT}"
        try:
            from bench.plots import plot_goals

            plot_goals(drawn, self.timed, self.lines())
            if drawn.exists():
                drawn.replace(self.out / PLOT)
        except Exception as error:  # no matplotlib, or whatever it cannot draw: the rest counts
            return f"no plot: {type(error).__name__}: {error}"
        return ""
