"""The command: phases with a clock, after each of which everything is in its place."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic

import torch

from bench import machine, results
from bench.goals import TimedRow
from bench.gpu.record import FIGURE_NAMES, FIGURES, TARGETS, Record
from bench.gpu.rows import TIMED_ROWS, serving
from bench.gpu.sanitize import NOT_INSTALLED, planned, sanitize, watched
from bench.gpu.sizes import SIZE_ROWS
from bench.gpu.suite import Item, all_of, check, collect, without_items
from bench.gpu.timing import Timing
from bench.results import Row
from mcr_fast.ops.registry import with_kernels

# Phases in their order, and seconds of each where all of them run. What one does not use the next
# ones have; torch.compile comes last, so that it takes nobody's.
PHASES = {
    "floors": 25,
    "quick check": 60,
    "ours": 90,
    "full check": 120,
    "peers": 60,
    "sizes": 60,
    "torch.compile": 45,
    "sanitize": 300,
}
OF_PART = {
    "floors": ("floors",),
    "check": ("quick check", "full check"),
    "time": ("floors", "ours", "peers", "torch.compile"),
    "sizes": ("floors", "sizes", "torch.compile"),
    "sanitize": ("sanitize",),
}
DEFAULT = ("floors", "check", "time", "sizes")  # compute-sanitizer takes a call of its own
BUDGET = sum(seconds for name, seconds in PHASES.items() if name != "sanitize")
MAX_WORKERS = 12  # processes that check at the same time: mostly they compile
TOLD_EVERY = 5.0  # seconds between two words about checks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="few cases, small rows, short times")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for everything")
    parser.add_argument(
        "--only",
        action="append",
        choices=("build", *OF_PART),
        help=f"build alone; others can be repeated; if left out {', '.join(DEFAULT)}",
    )
    parser.add_argument("--op", action="append", help="can be repeated; all if left out")
    parser.add_argument("--commit", default="", help="of a copy of the tree without its history")
    parser.set_defaults(command=run)


def build(options: argparse.Namespace) -> int:
    """Compile what there is to compile; 1 if some of it does not."""
    from bench.gpu.build import build_library, warm_up

    end, problems = monotonic() + options.budget, []
    for part in (partial(build_library, say=print), warm_up):
        figure, problem = part(end)
        problems += [problem] if problem else []
        options.out.mkdir(parents=True, exist_ok=True)
        results.merge(options.out / TARGETS, [figure], FIGURES, FIGURE_NAMES)
        print(f"{figure['what']}: {figure['measured']} s, {figure['detail']}", flush=True)
    return int(bool(problems))


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
    if options.only == ["build"] and torch.cuda.is_available():
        return build(options)
    reason = why_not()
    if reason:
        print(f"python -m bench gpu: {reason}", file=sys.stderr)
        return 2
    parts = options.only or DEFAULT
    if "build" in parts:
        print("python -m bench gpu: --only build is a run of its own", file=sys.stderr)
        return 2
    stamp = machine.gpu_environment(options.commit)
    timed = rows_of(TIMED_ROWS, options) if "time" in parts else []
    sizes = rows_of(SIZE_ROWS, options) if "sizes" in parts else []
    record = Record(options.out, stamp, timed, sizes)
    record.start(parts)
    with tempfile.TemporaryDirectory() as work:
        session = Session(options, record, Path(work))
        session.say(f"{stamp['device']}, {stamp['capability']}, torch {stamp['torch']}")
        for name, end in ends(parts, session.start, options.budget):
            session.take(name, end)
    problem = record.draw()
    text = record.write()
    session.say("\n".join([problem, text]).strip())
    session.say(f"written to {options.out}")
    rows = record.checked.values()
    bad = [r for r in rows if r["passed"] != "yes" and r["detail"] != NOT_INSTALLED]
    return int(bool(bad or record.failures(record.lines())))


def ends(parts: Iterable[str], start: float, budget: float) -> Iterator[tuple[str, float]]:
    """The phases of some parts and when each has to be done: together they take the budget."""
    wanted = {phase for part in parts for phase in OF_PART[part]}
    chosen = {name: seconds for name, seconds in PHASES.items() if name in wanted}
    spent = 0
    for name, seconds in chosen.items():
        spent += seconds
        yield name, start + budget * spent / sum(chosen.values())


def rows_of(rows: Iterable[TimedRow], options: argparse.Namespace) -> list[TimedRow]:
    """Those that are asked for."""
    return [
        row
        for row in rows
        if (row.quick or not options.quick) and (not options.op or row.case.op in options.op)
    ]


@dataclass
class Session:
    """A run of some phases."""

    options: argparse.Namespace
    record: Record
    work: Path
    start: float = field(default_factory=monotonic)
    told: float = 0.0

    def say(self, text: str) -> None:
        """A line with the clock."""
        print(f"{monotonic() - self.start:4.0f} s  {text}", flush=True)

    def take(self, name: str, end: float) -> None:
        """One phase; one that breaks costs itself."""
        self.say(f"{name}: until {end - self.start:.0f} s")
        actions = {
            "floors": lambda: self.timing.floors(end),
            "quick check": lambda: self.check(end, slow=False),
            "full check": lambda: self.check(end, slow=not self.options.quick, last=True),
            "ours": lambda: self.timing.rows(self.record.timed, "ours", end),
            "peers": lambda: self.timing.rows(self.record.timed, "peers", end) and [],
            "sizes": lambda: self.timing.rows(self.record.sizes, "ours and eager", end),
            "torch.compile": lambda: self.timing.rows(self.compiled(), "compile", end) and [],
            "sanitize": lambda: self.sanitize(end),
        }
        self.clocks(f"before {name}")
        try:
            self.record.unable += actions[name]()
        except Exception as error:
            self.record.unable.append(f"{name}: {type(error).__name__}: {error}")
        self.clocks(f"after {name}")
        self.record.write()
        self.say(f"{name}: done")

    def clocks(self, when: str) -> None:
        """What the card says of itself, beside the times."""
        self.record.figures([{"what": f"clocks {when}", **machine.clocks()}])

    @property
    def timing(self) -> Timing:
        options = self.options
        return Timing(options.out, self.say, options.quick, options.commit)

    def compiled(self) -> list[TimedRow]:
        """Rows for torch.compile, first those with a goal against it."""
        rows = [*self.record.timed, *self.record.sizes]
        return sorted(rows, key=lambda row: all(g.provider != "compile" for g in row.goals))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The (op, backend) that are asked for."""
        return [
            (op, backend)
            for op in (*with_kernels("triton"), "gather_add")
            for backend in serving(op)
            if not self.options.op or op in self.options.op
        ]

    def items(self, *, slow: bool) -> list[Item]:
        """The suite's items of these."""
        return [item for item in collect(slow=slow) if (item.op, item.backend) in self.pairs]

    @property
    def workers(self) -> int:
        return max(1, min(MAX_WORKERS, machine.cores() - 1))

    def check(self, end: float, *, slow: bool, last: bool = False) -> list[str]:
        """Items that have no verdict yet."""
        try:
            items = self.items(slow=slow)
        except RuntimeError as error:
            self.note(all_of(*pair).row("not run", str(error)) for pair in self.pairs)
            return []
        done = self.record.checked
        open_ = [i for i in items if done.get(i.key, {}).get("passed", "not run") == "not run"]
        if open_:
            check(open_, self.work / f"check {slow} {last}", self.workers, end, self.note)
        if last:
            self.note(without_items(done.values(), self.pairs))
        self.count()
        return []

    def note(self, rows: Iterable[Row]) -> None:
        """Rows of the checks; now and then a word about how many there are."""
        self.record.check(rows)
        if monotonic() - self.told > TOLD_EVERY:
            self.count()

    def count(self) -> None:
        self.told = monotonic()
        rows = self.record.checked.values()
        right = sum(row["passed"] == "yes" for row in rows)
        self.say(f"{len(rows)} checks: {right} right, {len(rows) - right} wrong or not run")

    def sanitize(self, end: float) -> list[str]:
        """Some items under compute-sanitizer."""
        try:
            small, everything = self.items(slow=False), self.items(slow=True)
        except RuntimeError as error:
            return [f"sanitize: {error}"]
        sanitize(planned(watched(small, everything)), self.workers, end, self.note)
        self.count()
        return []
