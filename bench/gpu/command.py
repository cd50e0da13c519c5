"""The command: checks, then measures floors and rows, then writes it all down."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from time import monotonic

import torch

from bench import machine, results
from bench.gpu.cases import check_cases
from bench.gpu.processes import python, run_checks, run_for
from bench.results import Row

PARTS = ("check", "floors", "time")
CHECK_SHARE = 0.45  # of the budget, at most, where rows are timed after it
REPORT_SECONDS = 15.0
MAX_WORKERS = 12  # processes that check at the same time: mostly they compile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="few cases, small rows, short times")
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything")
    parser.add_argument(
        "--only", action="append", choices=PARTS, help="can be repeated; all if left out"
    )
    parser.add_argument("--op", action="append", help="can be repeated; all if left out")
    parser.add_argument("--commit", default="", help="of a copy of the tree without its history")
    parser.set_defaults(command=run)


def why_not() -> str | None:
    """What is missing here to run on a GPU, None if nothing is."""
    if not torch.cuda.is_available():
        return "no CUDA device: torch.cuda.is_available() is False"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if importlib.util.find_spec("mcr_fast.kernels") is None:
        return (
            "mcr_fast.kernels cannot be imported; run `MCR_FAST_BUILD=none pip install -e . "
            "--no-build-isolation --no-deps`, or `ln -s ../kernels mcr_fast/kernels`"
        )
    return None


def run(options: argparse.Namespace) -> int:
    """0: every check ran and passed; 1: something is wrong or did not run; 2: no GPU here."""
    reason = why_not()
    if reason:
        print(f"python -m bench gpu: {reason}", file=sys.stderr)
        return 2
    # both import triton
    from bench.gpu import report
    from bench.gpu.floors import Rates
    from bench.gpu.measure import environment, verdicts

    end = monotonic() + options.budget - REPORT_SECONDS
    parts = options.only or PARTS
    options.out.mkdir(parents=True, exist_ok=True)
    stamp = environment(options.commit)
    print(f"{stamp['device']}, {stamp['capability']}, torch {stamp['torch']}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        checked = _check(options, work, end) if "check" in parts else []
        unable = []
        if "floors" in parts or "time" in parts:
            unable += _floors(options, work)
        if "time" in parts:
            unable += _time(options, work, end)
        rates = Rates.read(work / "rates.json")
    rows = _rows(options) if "time" in parts else []
    lines = _lines(options.out, rows)
    targets = verdicts([row for _, row in rows], lines, rates)
    if checked:
        report.write_checks(options.out / "correctness.csv", checked, stamp)
    if rates or targets:
        figures = [*_rate_rows(rates), *targets]
        results.write(
            options.out / "targets.csv",
            [{**stamp, **row} for row in figures],
            results.TARGET_COLUMNS,
        )
    report.plot(options.out / "gpu.png", [row for _, row in rows], lines, rates)
    unable += _failed_rows(lines)
    text = report.summary(checked, targets, unable, rates, stamp)
    (options.out / "summary.txt").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwritten to {options.out}")
    return int(bool(unable) or any(row["passed"] != "yes" for row in checked))


def _check(options: argparse.Namespace, work: Path, end: float) -> list[dict[str, str]]:
    """Every case on every backend, many at a time."""
    from bench.gpu.rows import serving

    alone = options.only == ["check"]
    deadline = end if alone else monotonic() + CHECK_SHARE * options.budget
    wanted = {
        backend: [
            key
            for key, case in check_cases().items()
            if backend in serving(case.op)
            and (not options.op or case.op in options.op)
            and (case.quick or not options.quick)
        ]
        for backend in ("triton", "cuda")
    }
    wanted = {backend: keys for backend, keys in wanted.items() if keys}
    found = []
    for at, (backend, keys) in enumerate(wanted.items()):
        folder = work / backend
        folder.mkdir()
        workers = max(1, min(MAX_WORKERS, machine.cores() - 1))
        left = deadline - monotonic()
        rows = run_checks(
            keys,
            lambda path, cases, b=backend: python(
                "bench.gpu.check", path, "--backend", b, "--cases", *cases
            ),
            folder,
            workers,
            monotonic() + left / (len(wanted) - at),
        )
        found += [{**row, "backend": backend} for row in rows]
        bad = sum(row["passed"] != "yes" for row in rows)
        print(f"{backend}: {len(rows) - bad} cases right, {bad} wrong or not run", flush=True)
    return found


def _floors(options: argparse.Namespace, work: Path) -> list[str]:
    command = python("bench.gpu.measure", options.out, "--rates", work / "rates.json")
    problem = run_for(command, 90)
    return [f"floors: {problem}"] if problem else []


def _time(options: argparse.Namespace, work: Path, end: float) -> list[str]:
    """Every row in a process of its own; a slow one takes from the others' time, but not all."""
    rows = _rows(options)
    _forget(options.out, rows)
    unable = []
    seconds = 0.05 if options.quick else 0.4
    for done, (index, row) in enumerate(rows):
        left = end - monotonic()
        if left < 10:
            unable.append(f"{row.label}: out of time")
            continue
        arguments = ("--rates", work / "rates.json", "--rows", index, "--seconds", seconds)
        command = python("bench.gpu.measure", options.out, *arguments, "--commit", options.commit)
        problem = run_for(command, min(left, max(30.0, 2 * left / (len(rows) - done))))
        print(f"{row.label}: {problem or 'timed'}", flush=True)
        if problem and not _ours_timed(options.out, row):
            unable.append(f"{row.label}: {problem}")
    return unable


def _forget(out: Path, rows: Iterable[tuple]) -> None:
    """Lines of an earlier run must not stand for what this one could not measure."""
    cases = {row.case.name for _, row in rows}
    for op in {row.case.op for _, row in rows}:
        path = out / f"{op}.csv"
        if path.exists():
            results.write(path, [r for r in results.read(path) if r["case"] not in cases])


def _rows(options: argparse.Namespace) -> list[tuple]:
    """(index, row) of the rows that are asked for."""
    from bench.gpu.rows import TIMED_ROWS

    return [
        (index, row)
        for index, row in enumerate(TIMED_ROWS)
        if (row.quick or not options.quick) and (not options.op or row.case.op in options.op)
    ]


def _lines(out: Path, rows: Iterable[tuple]) -> list[dict[str, str]]:
    """The lines of those rows, each provider's ratio to ours filled in and written back."""
    from bench.gpu.measure import with_ratios

    found = []
    for op in dict.fromkeys(row.case.op for _, row in rows):
        lines = with_ratios(results.read(out / f"{op}.csv"))
        results.merge(out / f"{op}.csv", lines)
        found += lines
    return found


def _ours_timed(out: Path, row) -> bool:
    lines = results.read(out / f"{row.case.op}.csv")
    found = {r["mode"] for r in lines if r["case"] == row.case.name and r["provider"] == "ours"}
    return set(row.modes) <= found


def _failed_rows(lines: Iterable[Row]) -> list[str]:
    """Where ours could not run at all."""
    return [
        f"{line['op']} {line['case']} {line['mode']} {line['provider']}: {line['skipped']}"
        for line in lines
        if line["provider"].startswith("ours") and line["skipped"]
    ]


def _rate_rows(rates) -> list[dict[str, str]]:
    """The floors among the targets, with nothing to reach."""
    if rates is None:
        return []
    named = {
        "copy bandwidth": (rates.copy, "TB/s"),
        "gather from the L2 cache": (rates.gather, "TB/s"),
        "bfloat16 product": (rates.bfloat16, "TFLOP/s"),
    }
    return [
        {"what": what, "measured": results.significant(rate / 1e12, 4), "unit": unit}
        for what, (rate, unit) in named.items()
    ]
