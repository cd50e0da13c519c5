"""Times rows in processes of their own, and shares the seconds among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from time import monotonic

from bench import results
from bench.goals import TimedRow
from bench.gpu.measure import ALL_ROWS, TIMES
from bench.gpu.processes import python, run_for
from bench.gpu.rows import providers
from bench.results import number, significant

SIZES_SHARE = 0.2  # of the budget, at most, for comparing our backends by size
OURS_AND_EAGER = ("ours_cuda", "ours_triton", "eager")


@dataclass
class Timing:
    """One run's times: where they go, and until when."""

    out: Path
    rates: Path  # the file of the floors
    end: float
    quick: bool = False
    commit: str = ""
    unable: list[str] = field(default_factory=list)  # rows that ours did not finish, and why

    def take(self, timed: Sequence[TimedRow], sizes: Sequence[TimedRow], budget: float) -> None:
        """Floors, sizes, rows with goals; torch.compile of the sizes in the time that is left."""
        self._forget([*timed, *sizes])
        problem = self._measure(90)
        self.unable += [f"floors: {problem}"] if problem else []
        by_op = [list(rows) for _, rows in groupby(sizes, lambda row: row.case.op)]
        share = SIZES_SHARE * budget if timed else budget
        self.unable += self._groups(by_op, OURS_AND_EAGER, min(self.end, monotonic() + share))
        self.unable += self._groups([[row] for row in timed], (), self.end)
        self._groups(by_op, ("compile",), self.end)

    def _forget(self, rows: Sequence[TimedRow]) -> None:
        """Lines of an earlier run must not stand for what this one could not measure."""
        cases = {(row.case.op, row.case.name) for row in rows}
        path = self.out / TIMES
        if path.exists():
            lines = results.read(path)
            results.write(path, [r for r in lines if (r["op"], r["case"]) not in cases])

    def _measure(
        self, limit: float, rows: Iterable[TimedRow] = (), names: Iterable[str] = ()
    ) -> str:
        """Rates if there are none yet, then rows; why it did not end well, empty if it did.

        Fewer calls where many sizes are only compared.
        """
        seconds = 0.05 if self.quick else 0.1 if names else 0.4
        arguments = ["--rates", self.rates, "--rows", *map(ALL_ROWS.index, rows)]
        arguments += ["--seconds", seconds, "--commit", self.commit, "--providers", *names]
        return run_for(python("bench.gpu.measure", self.out, *arguments), limit)

    def _groups(
        self, groups: Sequence[Sequence[TimedRow]], names: Sequence[str], end: float
    ) -> list[str]:
        """A process for each group: one that ends it costs itself, and the others go on.

        A slow group takes from the others' time, but not all. Returns what was not timed, and why.
        """
        unable = []
        for done, left in enumerate(groups):
            label = left[0].label if len(left) == 1 else f"sizes of {left[0].case.op}"
            wanted = {row.label: _wanted(row, names) for row in left}
            left, problem = [row for row in left if wanted[row.label]], ""
            who = sorted({name for found in wanted.values() for name in found})
            while left:
                seconds = end - monotonic()
                if seconds < 10:
                    problem = "not run, out of time"
                    unable += [f"{row.label}: {problem}" for row in left]
                    break
                limit = min(seconds, max(30.0, 2 * seconds / (len(groups) - done)))
                problem = self._measure(limit, left, names)
                missing = [row for row in left if not self._has(row, wanted[row.label])]
                stopped = problem.startswith("stopped")
                if problem:
                    unable += [f"{r.label}: {problem}" for r in missing[: None if stopped else 1]]
                left = missing[1:] if problem and not stopped else []
            print(f"{label}, {', '.join(who)}: {problem or 'timed'}", flush=True)
        return unable

    def _has(self, row: TimedRow, names: set[str]) -> bool:
        """Whether these providers have a line in every mode of a row."""
        found = {results.key(line) for line in results.read(self.out / TIMES)}
        return {(row.case.op, row.case.name, m, p) for m in row.modes for p in names} <= found


def _wanted(row: TimedRow, names: Sequence[str]) -> set[str]:
    """Those of the named providers that a row has; ours where none is named."""
    return {p.name for p in providers(row)} & {*names} if names else {"ours"}


def lines_of(out: Path, rows: Iterable[TimedRow]) -> list[dict[str, str]]:
    """The lines of those rows, each provider's ratio to ours filled in and written back."""
    cases = {(row.case.op, row.case.name) for row in rows}
    lines = results.read(out / TIMES)
    medians = {results.key(line): number(line, "p50_ms") for line in lines}
    for line in lines:
        base = medians.get((line["op"], line["case"], line["mode"], "ours"))
        own = number(line, "p50_ms")
        line["ratio_to_ours"] = significant(own / base if own and base else None)
    if lines:
        results.write(out / TIMES, lines)
    return [line for line in lines if (line["op"], line["case"]) in cases]
