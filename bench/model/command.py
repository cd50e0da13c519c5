"""`python -m bench model`: counts, predicts, and writes the tables of docs/cost/model.md."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench import results
from bench.case import Case
from bench.machine import ROOT
from bench.model import figures
from bench.model.kernels import instance, line_of, work_of
from bench.model.rows import ROWS
from bench.model.sass import Code, disassemble

BACKENDS = {
    "triton": {"MCR_FAST_LAUNCHED": "1"},
    "cuda": {"MCR_FAST_EMULATED": "1", "MCR_EMULATED_NOTHING": "1"},
}
FLAGS = ("-std=c++17", "-O3", "-DMCR_ISA=cuda", "-DUSE_CUDA")
PAGE = ROOT / "docs" / "cost" / "model.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    several = "can be repeated; all if left out"
    parser.add_argument("--backend", action="append", choices=BACKENDS, help=several)
    parser.add_argument("--row", action="append", help=f"label of a row; {several}")
    parser.add_argument("--out", type=Path, default=figures.PREDICTED, help="file of the figures")
    parser.set_defaults(command=command)


def launched(backend: str, labels: Iterable[str], folder: Path) -> list[dict]:
    """What each row starts, by tests/modelled.py in a process of its own."""
    program = [sys.executable, str(ROOT / "tests" / "modelled.py"), backend, str(folder), *labels]
    environment = os.environ | BACKENDS[backend]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{backend}: {done.stderr.strip().splitlines()[-1:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def nvdisasm() -> Path:
    """The disassembler that Triton brings along."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"


def compiled(source: str) -> Mapping[str, Code]:
    """A file of CUDA C++ for sm_90; compiled again when a source has changed."""
    texts = sorted((ROOT / "csrc").glob("**/*.*"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in texts)).hexdigest()[:16]
    cubin = ROOT / "build" / "model" / f"{source.replace('/', '-')}-{digest}.cubin"
    if not cubin.exists():
        cubin.parent.mkdir(parents=True, exist_ok=True)
        new = cubin.with_suffix(".new")
        arguments = ["-cubin", "-arch=sm_90", "-I", str(ROOT / "csrc"), "-o", str(new)]
        path = str(ROOT / "csrc" / source)
        subprocess.run(["nvcc", *FLAGS, *arguments, path], check=True, capture_output=True)
        new.replace(cubin)
    return disassemble(cubin, nvdisasm())


def works_of(line: dict, case: Case) -> list[figures.Work]:
    """The kernels of a row's step."""
    calls: dict[str, int] = {}
    for part in ("forward_with_gradient", "backward"):
        for name, count in line[part].items():
            calls[name] = calls.get(name, 0) + count
    found = []
    for name, count in calls.items():
        kernel, tile, code = (
            line_of(name, case, line["backend"]),
            line["kernels"].get(name, {}),
            None,
        )
        if kernel.loop and kernel.source:
            chosen = instance(kernel, case, compiled(kernel.source))
            tile, code = chosen or ({}, None)
        elif kernel.loop and "file" in tile:
            (code,) = disassemble(Path(tile["file"]), nvdisasm()).values()
        found.append(work_of(name, count, case, kernel, tile, code))
    return found


def modelled(backends: Iterable[str], labels: Iterable[str]) -> list[dict[str, str]]:
    """The rows of the file."""
    cases = {row.label: row.case for row in ROWS}
    versions = {"triton": version("triton"), "nvcc": version("nvcc")}
    found = []
    with tempfile.TemporaryDirectory() as name:
        for backend in backends:
            for line in launched(backend, labels, Path(name)):
                if "refused" in line:
                    print(f"{line['label']}, {backend}: {line['refused']}")
                    continue
                works = works_of(line, cases[line["label"]])
                rows = figures.rows(line["label"], backend, works)
                found += [{**row, **versions} for row in rows]
    return found


def version(tool: str) -> str:
    """Which Triton or nvcc compiles here."""
    if tool == "triton":
        import triton

        return triton.__version__
    output = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    return output.stdout.split("release ")[1].split(",")[0]


def command(options: argparse.Namespace) -> int:
    """Model, print, and write the file and the page; part of it only prints."""
    rows = modelled(options.backend or BACKENDS, options.row or [])
    whole = not options.backend and not options.row
    with tempfile.TemporaryDirectory() as name:
        path = options.out if whole else Path(name) / "figures.csv"
        results.write(path, rows, figures.COLUMNS)
        print(steps(path))
        print("\n" + loops(path))
    if whole and options.out == figures.PREDICTED:
        from bench.table import write_tables

        print(f"\n{PAGE}: {write_tables(PAGE, options.out.parent)} tables")
    return 0


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def steps(path: Path) -> str:
    """A line for each row and backend: its launches, and the time of a step."""
    head = ("row", "backend", "launches", "replayed, us", "launched, us", "goals, us")
    lines = [_row(*head, "longest kernel", "binds"), "|---" * 8 + "|"]
    goals = {
        row.label: ", ".join(f"{g.value * 1e3:g}" for g in row.goals if g.against == "ms")
        for row in ROWS
    }
    for (label, backend), works in figures.predicted(path).items():
        longest = max(works, key=lambda work: work.us)
        times = (figures.step_us(works, backend, mode) for mode in ("full_graph", "full"))
        cells = [label, backend, str(sum(work.calls for work in works))]
        cells += [results.significant(time, 3) for time in times]
        cells += [goals[label] or "-", f"`{longest.kernel}`", longest.binds]
        lines.append(_row(*cells))
    return "\n".join(lines)


def loops(path: Path) -> str:
    """A line for each kernel that takes a twentieth of its step or more."""
    head = ("row", "kernel", "slots", "special", "issue, us", "special unit, us", "memory, us")
    lines = [_row(*head, "L2, us", "tensor cores, us"), "|---" * 9 + "|"]
    for (label, _), works in figures.predicted(path).items():
        for work in works:
            longest = max(work.pipes.values())
            if longest == 0 or work.us < sum(each.us for each in works) / 20:
                continue
            counted = [results.significant(n, 3) if n else "-" for n in (work.slots, work.special)]
            pipes = [results.significant(1e6 * s, 3) if s else "-" for s in work.pipes.values()]
            lines.append(_row(label, f"`{work.kernel}`", *counted, *pipes))
    return "\n".join(lines)
