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
from bench.floors import Rates
from bench.goals import TimedRow, verdicts
from bench.gpu import report
from bench.gpu.rows import TIMED_ROWS, serving
from bench.gpu.sanitize import NOT_INSTALLED, planned, sanitize, watched
from bench.gpu.sizes import SIZE_ROWS
from bench.gpu.suite import Item, all_of, check, collect
from bench.gpu.timing import Timing, lines_of
from bench.results import Row
from mcr_fast.ops.registry import with_kernels

PARTS = ("check", "sanitize", "floors", "sizes", "time")
# of the budget, at most, where something else comes too
CHECK_SHARE, SANITIZE_SHARE = 0.38, 0.14
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
    end = monotonic() + options.budget - REPORT_SECONDS
    parts = options.only or PARTS
    options.out.mkdir(parents=True, exist_ok=True)
    stamp = machine.gpu_environment(options.commit)
    print(f"{stamp['device']}, {stamp['capability']}, torch {stamp['torch']}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        checked = _check(options, work, end) if {"check", "sanitize"} & {*parts} else []
        timed = _rows(TIMED_ROWS, options) if "time" in parts else []
        sizes = _rows(SIZE_ROWS, options) if "sizes" in parts else []
        timing = Timing(options.out, work / "rates.json", end, options.quick, options.commit)
        if "floors" in parts or timed or sizes:
            timing.take(timed, sizes, options.budget)
        rates = Rates.read(timing.rates)
    lines = lines_of(options.out, [*timed, *sizes])
    targets = verdicts([*timed, *sizes], lines, rates)
    if checked:
        report.write_checks(options.out / "correctness.csv", checked, stamp)
    if rates or targets:
        figures = [{**stamp, **row} for row in (*report.floor_rows(rates), *targets)]
        results.write(options.out / "targets.csv", figures, results.TARGET_COLUMNS)
    from bench.plots import plot_goals  # needs matplotlib

    plot_goals(options.out / "gpu.png", timed, lines)
    unable = [*timing.unable, *_failed_rows(lines)]
    compared = report.write_sizes(options.out / "sizes.csv", sizes, lines, stamp)
    text = report.summary(checked, targets, unable, rates, stamp, compared)
    (options.out / "summary.txt").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwritten to {options.out}")
    bad = [r for r in checked if r["passed"] != "yes" and r["detail"] != NOT_INSTALLED]
    return int(bool(unable or bad))


def _rows(rows: Iterable[TimedRow], options: argparse.Namespace) -> list[TimedRow]:
    """Those that are asked for."""
    return [
        row
        for row in rows
        if (row.quick or not options.quick) and (not options.op or row.case.op in options.op)
    ]


def _check(options: argparse.Namespace, work: Path, end: float) -> list[dict[str, str]]:
    """Both parts that run items of the suite: the checks, then some under compute-sanitizer."""
    parts = options.only or PARTS
    pairs = [
        (op, backend)
        for op in (*with_kernels("triton"), "gather_add")
        for backend in serving(op)
        if not options.op or op in options.op
    ]

    def items(*, slow: bool) -> list[Item]:
        return [item for item in collect(slow=slow) if (item.op, item.backend) in pairs]

    try:
        everything = items(slow=not options.quick)
        small = items(slow=False) if "sanitize" in parts else []
    except RuntimeError as error:
        return [all_of(*pair).row("not run", str(error)) for pair in pairs]
    workers = max(1, min(MAX_WORKERS, machine.cores() - 1))
    found = []
    if "check" in parts:
        found += check(everything, pairs, work, workers, _until(options, CHECK_SHARE, end))
    if "sanitize" in parts:
        runs = planned(watched(small, everything))
        rows = sanitize(runs, workers, _until(options, SANITIZE_SHARE, end))
        clean = sum(row["passed"] == "yes" for row in rows)
        print(f"compute-sanitizer: {clean} of {len(rows)} runs clean", flush=True)
        found += rows
    return found


def _until(options: argparse.Namespace, share: float, end: float) -> float:
    """When a part has to be done: it has a share of the budget, or all of it if it is alone."""
    alone = options.only and len(options.only) == 1
    return end if alone else monotonic() + share * options.budget


def _failed_rows(lines: Iterable[Row]) -> list[str]:
    """Where ours could not run at all."""
    return [
        f"{line['op']} {line['case']} {line['mode']} {line['provider']}: {line['skipped']}"
        for line in lines
        if line["provider"].startswith("ours") and line["skipped"]
    ]
