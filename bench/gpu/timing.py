"""Which rows are timed, in which order, and how the seconds are shared among them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from time import monotonic

from bench import results
from bench.gpu.measure import ALL_ROWS, TIMES, with_ratios
from bench.gpu.processes import python, run_for
from bench.gpu.rows import TimedRow
from bench.gpu.sizes import HEADER, choice, disagreements, markdown, size_providers, table
from bench.results import Row

SIZES = "sizes.csv"
SIZES_SHARE = 0.2  # of the budget, at most, for comparing our backends by size
OURS_AND_EAGER = ("ours_cuda", "ours_triton", "eager")
Rows = list[tuple[int, TimedRow]]  # with their places in ALL_ROWS


def take_times(
    options: argparse.Namespace, work: Path, timed: Rows, sizes: Rows, end: float
) -> list[str]:
    """Floors, sizes, rows with goals; torch.compile of the sizes in the time that is left."""
    _forget(options.out / TIMES, [*timed, *sizes])
    unable = _floors(options, work)
    share = SIZES_SHARE * options.budget if timed else options.budget
    unable += _sizes(options, work, sizes, OURS_AND_EAGER, min(end, monotonic() + share))
    unable += _time(options, work, timed, end)
    _sizes(options, work, sizes, ("compile",), end)
    return unable


def _floors(options: argparse.Namespace, work: Path) -> list[str]:
    command = python("bench.gpu.measure", options.out, "--rates", work / "rates.json")
    problem = run_for(command, 90)
    return [f"floors: {problem}"] if problem else []


def _measure(
    options: argparse.Namespace, work: Path, indices: Iterable[int], providers: Iterable[str] = ()
) -> list[str]:
    """What times rows; fewer calls where many sizes are only compared."""
    seconds = 0.05 if options.quick else 0.1 if providers else 0.4
    arguments = ["--rates", work / "rates.json", "--rows", *indices, "--seconds", seconds]
    arguments += ["--commit", options.commit, "--providers", *providers]
    return python("bench.gpu.measure", options.out, *arguments)


def _time(options: argparse.Namespace, work: Path, rows: Rows, end: float) -> list[str]:
    """Every row in a process of its own; a slow one takes from the others' time, but not all."""
    unable = []
    for done, (index, row) in enumerate(rows):
        left = end - monotonic()
        if left < 10:
            unable.append(f"{row.label}: not run, out of time")
            continue
        command = _measure(options, work, [index])
        problem = run_for(command, min(left, max(30.0, 2 * left / (len(rows) - done))))
        print(f"{row.label}: {problem or 'timed'}", flush=True)
        if problem and not _timed(options.out, row, {"ours"}):
            unable.append(f"{row.label}: {problem}")
    return unable


def _sizes(
    options: argparse.Namespace,
    work: Path,
    rows: Rows,
    providers: tuple[str, ...],
    end: float,
) -> list[str]:
    """All sizes of an op in one process; one that ends it costs itself, and the others go on."""
    unable = []
    ops = [*dict.fromkeys(row.case.op for _, row in rows)]
    for done, op in enumerate(ops):
        left = [(index, row) for index, row in rows if row.case.op == op]
        wanted = {p.name for p in size_providers(left[0][1].case)} & set(providers)
        while left and wanted:
            if end - monotonic() < 10:
                unable += [f"{row.label}: not run, out of time" for _, row in left]
                break
            command = _measure(options, work, [index for index, _ in left], providers)
            seconds = end - monotonic()
            problem = run_for(command, min(seconds, max(20.0, 2 * seconds / (len(ops) - done))))
            open_ = [at for at in left if not _timed(options.out, at[1], wanted)]
            if problem.startswith("stopped"):
                unable += [f"{row.label}: {problem}" for _, row in open_]
                break
            if problem and open_:
                unable.append(f"{open_[0][1].label}: {problem}")
            left = open_[1:] if problem else []
        print(f"sizes of {op}: {', '.join(sorted(wanted))}", flush=True)
    return unable


def compare(out: Path, rows: list[TimedRow], lines: list[Row], stamp: Row) -> str:
    """Writes the table of sizes; the same for the summary, with what it would choose."""
    if not rows:
        return ""
    found = table(rows, lines)
    results.write(out / SIZES, [{**stamp, **row} for row in found], (*HEADER, *results.ENVIRONMENT))
    chosen = choice(rows, found)
    advice = f"mcr_fast/ops/registry.py, by these times:\n{chosen}" if chosen else ""
    open_ = disagreements(rows, found)
    doubt = f"sizes of one class that do not agree, the faster one by how much:\n{open_}"
    return "\n\n".join(filter(None, [markdown(found), advice, doubt if open_ else ""]))


def _forget(path: Path, rows: Rows) -> None:
    """Lines of an earlier run must not stand for what this one could not measure."""
    cases = {(row.case.op, row.case.name) for _, row in rows}
    if path.exists():
        kept = [r for r in results.read(path) if (r["op"], r["case"]) not in cases]
        results.write(path, kept)


def rows_of(options: argparse.Namespace, *, step_only: bool) -> Rows:
    """(index, row) of the rows that are asked for: the sizes, or those with goals."""
    return [
        (index, row)
        for index, row in enumerate(ALL_ROWS)
        if row.step_only == step_only
        and (row.quick or not options.quick)
        and (not options.op or row.case.op in options.op)
    ]


def lines_of(out: Path, rows: Iterable[TimedRow]) -> list[dict[str, str]]:
    """The lines of those rows, each provider's ratio to ours filled in and written back."""
    cases = {(row.case.op, row.case.name) for row in rows}
    lines = with_ratios(results.read(out / TIMES))
    if lines:
        results.write(out / TIMES, lines)
    return [line for line in lines if (line["op"], line["case"]) in cases]


def _timed(out: Path, row: TimedRow, providers: set[str]) -> bool:
    """Whether these providers have a line in every mode of a row."""
    found = {results.key(line) for line in results.read(out / TIMES)}
    keys = {(row.case.op, row.case.name, m, p) for m in row.modes for p in providers}
    return keys <= found
