"""NVIDIA's compute-sanitizer over the kernels of each op, on small items of tests/suite.

Options and messages are those of Compute Sanitizer 2026.4; the kernel filter had another name in
older ones. The tools slow everything down, and their verdict is about memory: few items run.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from time import monotonic

from bench.gpu.processes import last_words, run_group
from bench.gpu.suite import Item, pytest_command

# Triton's own synchronisation and shared memory are not ours to check
TOOLS = {"cuda": ("memcheck", "racecheck", "initcheck", "synccheck"), "triton": ("memcheck",)}
# what our kernels' names hold: mangled, for the filter, and as the reports print them
MANGLED = "3mcr4cuda"
PRINTED = "mcr::cuda"
NAME = "compute-sanitizer"
NOT_INSTALLED = f"{NAME} is not installed"

# the checks that run: ours several times, and on inputs that are not contiguous
WATCHED = ("repeat", "strided")
QUICK_CASES = 10  # of an op on a backend, at most
# beside the quick cases: rows that a block holds (shared memory), reads of 16 bytes at once, bands
MORE = re.compile(
    r"permuted_divergence/shape_M\d+_N12_C1025_\w+|row_divergence/shape_R9_N4_C1025_jsd_float32"
    r"|permuted_divergence/band_M2_N701_C50_window_count\d+_scale0\.17_[a-z]*float\d+_\w+"
    r"|reconstruction_loss/shape_N(8_D16_16|70_D37_41)_\w+"
    r"|(nt_xent|sup_con)/tiled_L128_D64_classes6_float32_T0\.5"
)
ERROR_CODE = 97
FIRST_PORT, PORTS = 49152, 10  # every run has ports of its own


def find() -> Path | None:
    """The tool: on PATH, beside nvcc, or in the usual place of the toolkit."""
    nvcc = shutil.which("nvcc")
    places = [Path(nvcc).resolve().parent] if nvcc else []
    places.append(Path("/usr/local/cuda/bin"))
    found = shutil.which(NAME)
    for place in places:
        found = found or shutil.which(NAME, path=str(place))
    return Path(found) if found else None


def watched(quick: Iterable[Item], everything: Iterable[Item]) -> list[Item]:
    """What a tool is to watch: of each op and backend some quick cases, and those of MORE."""
    kept: set[tuple[str, ...]] = set()
    for _, group in groupby(quick, key=lambda item: item[1:3]):
        cases = list(dict.fromkeys(item[1:4] for item in group))
        kept |= {*cases[:: 1 + (len(cases) - 1) // QUICK_CASES]}
    return [
        item
        for item in everything
        if item.check in WATCHED and (item[1:4] in kept or MORE.fullmatch(f"{item.op}/{item.case}"))
    ]


@dataclass(frozen=True)
class Run:
    """One tool over one op's cases."""

    op: str
    backend: str
    tool: str
    number: int
    nodeids: tuple[str, ...]

    def command(self, tool: Path, usage: str) -> list[str]:
        """What to start; `usage` is what the tool's --help says."""
        options = ["--tool", self.tool, "--error-exitcode", str(ERROR_CODE), "--print-limit", "0"]
        options += ["--port", str(FIRST_PORT + PORTS * self.number), "--launch-timeout", "60"]
        options += ["--target-processes", "application-only"]  # not ptxas, not a C compiler
        if self.tool == "memcheck":
            options += ["--report-api-errors", "no"]  # torch asks for what may not be there
        # initcheck has to see what torch's kernels write
        if self.backend == "cuda" and self.tool != "initcheck":
            name = "--kernel-name" if "--kernel-name " in usage else "--kernel-regex"
            options += [name, f"kns={MANGLED}"]
        return [str(tool), *options, *pytest_command("--slow", *self.nodeids)]

    def environment(self) -> dict[str, str]:
        """Every tensor an allocation of its own: one that is reused hides both errors."""
        alone = self.tool in ("memcheck", "initcheck")
        return {**os.environ, **({"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if alone else {})}

    def row(self, passed: str, detail: str) -> dict[str, str]:
        """As it stands in correctness.csv."""
        case = f"{NAME} {self.tool}, {len(self.nodeids)} items"
        named = {"op": self.op, "backend": self.backend, "case": case, "checks": self.tool}
        return {**named, "passed": passed, "detail": detail}


def is_sanitized(row: Mapping[str, str]) -> bool:
    """Whether a row of the checks is a tool's verdict, not that on a case."""
    return row["case"].startswith(NAME)


def reports(output: str) -> Iterator[str]:
    """Every report of the tool, on one line: what is wrong, and where."""
    lines = re.findall(r"^=========( .*|)$", output, re.MULTILINE)
    found: list[str] = []
    for line in [*lines, " "]:
        if line.startswith("     ") and found:
            found.append(line)
            continue
        # the heading of a report is followed by indented lines
        if len(found) > 1:
            yield " ".join(" ".join(found).split())
        found = [line] if line.strip() else []


def verdict(tool: str, output: str, code: int) -> tuple[str, str]:
    """("yes" | "no" | "not run", why)."""
    pattern = r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard"
    counts = [int(a or b) for a, b in re.findall(pattern, output)]
    if not counts:
        return "not run", f"{tool} gave no summary, code {code}: {last_words(output)}"
    found = list(reports(output))
    if tool == "initcheck":
        # it watches torch's kernels too, whose errors are not ours to judge
        found = [text for text in found if PRINTED in text]
        wrong = bool(found)
    else:
        wrong = any(counts) or code == ERROR_CODE
    if wrong:
        first = found[0] if found else last_words(output)
        return "no", f"{sum(counts)} errors of {tool}, the first: {first}"[:600]
    if code not in (0, ERROR_CODE):
        return "no", f"the items ended with {code} under {tool}: {last_words(output)}"
    return "yes", ""


def planned(items: Sequence[Item]) -> list[Run]:
    """The runs over items, the tools that find most first."""
    nodeids: dict[tuple[str, str], list[str]] = {}
    for item in items:
        nodeids.setdefault((item.op, item.backend), []).append(item.nodeid)
    wanted = [
        (op, backend, tool)
        for backend, tools in TOOLS.items()
        for tool in tools
        for op, b in nodeids
        if b == backend
    ]
    return [Run(*run, at, tuple(nodeids[run[:2]])) for at, run in enumerate(wanted)]


def sanitize(
    runs: Sequence[Run],
    workers: int,
    deadline: float,
    note: Callable[[list[dict[str, str]]], None],
) -> None:
    """Notes a row for every run when it ends; without the tool they all say so."""
    tool = find()
    if tool is None:
        note([run.row("not run", NOT_INSTALLED) for run in runs])
        return
    usage, _ = run_group([str(tool), "--help"], 60)

    def one(run: Run) -> dict[str, str]:
        left = deadline - monotonic()
        if left <= 0:
            return run.row("not run", "out of time")
        output, code = run_group(run.command(tool, usage), left, run.environment())
        if code is None:
            return run.row("not run", "not finished in time")
        return run.row(*verdict(run.tool, output, code))

    with ThreadPoolExecutor(max_workers=workers) as pool:
        for done in as_completed(pool.submit(one, run) for run in runs):
            note([done.result()])
