"""Times rows in processes of their own, and goes on where one of them ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from bench import results
from bench.goals import TimedRow
from bench.gpu.measure import ALL_ROWS
from bench.gpu.processes import Say, python, run_lines
from bench.gpu.record import TIMES
from bench.gpu.rows import chosen

# The longest that a row may say nothing: it compiles its kernels before its first line.
SILENCE = 45.0
COMPILE_SILENCE = 20.0  # of torch.compile at the least: it takes its share of what is left
LEAST = 5.0  # seconds that are worth a process
SECONDS = {"ours": 0.2, "peers": 0.2, "ours and eager": 0.1, "compile": 0.1}  # of calls


@dataclass
class Timing:
    """One run's times: where they go, and who is told."""

    out: Path
    say: Say
    quick: bool = False
    commit: str = ""

    def floors(self, end: float) -> list[str]:
        """What the card does at best; why it is not known."""
        problem = self._measure(end, 60.0, ["--seconds", 0.05 if self.quick else 0.2])
        return [f"floors: {problem}"] if problem else []

    def rows(self, rows: Iterable[TimedRow], who: str, end: float) -> list[str]:
        """One process for all, and another one after a row that ends it or hangs.

        What another phase has timed is not timed again: rows can share a case. Returns what was
        not timed, and why.
        """
        unable = []
        left = self._missing(list(rows), who)
        seconds = 0.05 if self.quick else SECONDS[who]
        while left:
            remaining = end - monotonic()
            if remaining < LEAST:
                return unable + [f"{row.label}: not run, out of time" for row in left]
            share = remaining / len(left)
            silence = max(COMPILE_SILENCE, share) if who == "compile" else SILENCE
            indices = map(ALL_ROWS.index, left)
            arguments = ["--who", who, "--seconds", seconds, "--rows", *indices]
            problem = self._measure(end, silence, arguments)
            left = self._missing(left, who)
            if not problem:
                return unable
            stopped = problem.startswith("stopped")
            unable += [f"{row.label}: {problem}" for row in left[: None if stopped else 1]]
            left = [] if stopped else left[1:]
        return unable

    def _measure(self, end: float, silence: float, arguments: Iterable[object]) -> str:
        command = python("bench.gpu.measure", self.out, "--commit", self.commit, *arguments)
        return run_lines(command, end - monotonic(), silence, self.say)

    def _missing(self, rows: Sequence[TimedRow], who: str) -> list[TimedRow]:
        """Those of which a provider has no line in one of its modes."""
        found = {results.key(line) for line in results.read(self.out / TIMES)}

        def complete(row: TimedRow) -> bool:
            names = [p.name for p in chosen(row, who)]
            lines = {(row.case.op, row.case.name, m, n) for n in names for m in row.modes_of(n)}
            return lines <= found

        return [row for row in rows if not complete(row)]
