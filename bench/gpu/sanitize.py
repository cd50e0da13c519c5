"""NVIDIA's compute-sanitizer over the kernels of each op, on small inputs.

Options and messages are those of Compute Sanitizer 2026.4; the kernel filter had another name in
older ones. The inputs run alone, without the checks of `bench.gpu.check`: the tools slow everything
down, and their verdict is about memory, not about results.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from bench.gpu.cases import CheckCase, check_cases
from bench.gpu.processes import last_words, python, run_group, unfinished

# Triton's own synchronisation and shared memory are not ours to check
TOOLS = {"cuda": ("memcheck", "racecheck", "initcheck", "synccheck"), "triton": ("memcheck",)}
# what our kernels' names hold: mangled, for the filter, and as the reports print them
MANGLED = "3mcr4cuda"
PRINTED = "mcr::cuda"
NAME = "compute-sanitizer"
NOT_INSTALLED = f"{NAME} is not installed"

# beside the quick cases: rows that a block holds (shared memory), reads of 16 bytes at once, pairs
# that are far
MORE = re.compile(
    r"permuted_divergence/M\d+_N12_C1025_\w+|row_divergence/R9_N4_C1025"
    r"|permuted_divergence/far_N(75_K7_C1000_table|701_K15_C50_cyclic)_[\w.]+"
    r"|reconstruction_loss/N(8_D16_16|70_D37_41)_\w+|(nt_xent|sup_con)/L128_D64_C6"
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


def cases_of(op: str, backend: str) -> list[CheckCase]:
    """The small inputs of an op on a backend."""
    return [
        case
        for case in check_cases().values()
        if case.op == op and backend in case.backends and not case.poisoned
        if case.quick or MORE.fullmatch(case.key)
    ]


@dataclass(frozen=True)
class Run:
    """One tool over one op's cases."""

    op: str
    backend: str
    tool: str
    number: int

    @property
    def key(self) -> str:
        """What names its row among the checks."""
        return f"{self.op}/{NAME} {self.tool}, {len(cases_of(self.op, self.backend))} inputs"

    def command(self, tool: Path, usage: str, results: Path) -> list[str]:
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
        cases = [case.key for case in cases_of(self.op, self.backend)]
        arguments = ("--backend", self.backend, "--run-only", "--cases", *cases)
        return [str(tool), *options, *python("bench.gpu.check", results, *arguments)]

    def environment(self) -> dict[str, str]:
        """Every tensor an allocation of its own: one that is reused hides both errors."""
        alone = self.tool in ("memcheck", "initcheck")
        return {**os.environ, **({"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if alone else {})}

    def row(self, output: str, code: int) -> dict[str, str]:
        """The verdict on what the tool printed."""
        row = {**unfinished(self.key, *verdict(self, output, code)), "checks": self.tool}
        return {**row, "backend": self.backend}


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


def verdict(run: Run, output: str, code: int) -> tuple[str, str]:
    """("yes" | "no" | "not run", why)."""
    pattern = r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard"
    counts = [int(a or b) for a, b in re.findall(pattern, output)]
    if not counts:
        return "not run", f"{run.tool} gave no summary, code {code}: {last_words(output)}"
    found = list(reports(output))
    if run.tool == "initcheck":
        # it watches torch's kernels too, whose errors are not ours to judge
        found = [text for text in found if PRINTED in text]
        wrong = bool(found)
    else:
        wrong = any(counts) or code == ERROR_CODE
    if wrong:
        first = found[0] if found else last_words(output)
        return "no", f"{sum(counts)} errors of {run.tool}, the first: {first}"[:600]
    if code not in (0, ERROR_CODE):
        return "no", f"the inputs ended with {code} under {run.tool}: {last_words(output)}"
    return "yes", ""


def planned(ops: Sequence[tuple[str, str]]) -> list[Run]:
    """The runs over pairs of (op, backend), the tools that find most first."""
    order = [(backend, tool) for backend in TOOLS for tool in TOOLS[backend]]
    wanted = [(op, backend, tool) for backend, tool in order for op, b in ops if b == backend]
    return [Run(*run, number) for number, run in enumerate(wanted)]


def sanitize(
    runs: Sequence[Run], folder: Path, workers: int, deadline: float
) -> list[dict[str, str]]:
    """A row for every run; without the tool they all say so."""
    tool = find()
    if tool is None:
        return [not_run(run, NOT_INSTALLED) for run in runs]
    asked = subprocess.run([tool, "--help"], capture_output=True, text=True, check=False)

    def one(run: Run) -> dict[str, str]:
        if monotonic() > deadline:
            return not_run(run, "out of time")
        results = folder / f"{run.number}.jsonl"
        command = run.command(tool, asked.stdout, results)
        output, code = run_group(command, deadline - monotonic(), run.environment())
        return not_run(run, "not finished in time") if code is None else run.row(output, code)

    with ThreadPoolExecutor(max_workers=workers) as pool:
        return list(pool.map(one, runs))


def not_run(run: Run, why: str) -> dict[str, str]:
    """The row of a tool that gave no verdict."""
    row = unfinished(run.key, "not run", why)
    return {**row, "checks": run.tool, "backend": run.backend}
