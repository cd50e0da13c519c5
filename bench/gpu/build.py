"""Compiles what the other parts run, all cores at it, before their clock starts.

The CUDA library, where none is loaded: one that was carried here counts. Then Triton's kernels of
every row that is timed, into Triton's cache. In processes of their own: this one may not even be
able to import the kernels.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import torch

from bench import machine
from bench.gpu.processes import Say, last_words, run_group
from bench.machine import ROOT

LOADED = (
    "import mcr_fast, mcr_fast.kernels; "
    "assert any('cuda' not in op['unavailable'] for op in mcr_fast.backends().values())"
)
INSTALL = (
    "pip",
    "install",
    "--quiet",
    "--no-build-isolation",
    "--no-deps",
    "--editable",
    str(ROOT),
)


def figure(what: str, seconds: float, detail: str) -> dict[str, str]:
    """As it stands among the figures."""
    return {"what": f"build: {what}", "measured": f"{seconds:.0f}", "unit": "s", "detail": detail}


def run_python(arguments: Sequence[str], end: float, **environment: str) -> str:
    """Why it did not end well, empty if it did."""
    command = [sys.executable, *arguments]
    output, code = run_group(command, end - monotonic(), {**os.environ, **environment})
    if code == 0:
        return ""
    return f"{'stopped' if code is None else f'ended with {code}'}: {last_words(output)}"


def build_library(end: float, say: Say) -> tuple[dict[str, str], str]:
    """What it took, and why there is no CUDA library, empty if there is."""
    start = monotonic()
    if not run_python(["-c", LOADED], end):
        return figure("CUDA library", monotonic() - start, "there already"), ""
    major, minor = torch.cuda.get_device_capability()
    say(f"compiling the CUDA library for sm_{major}{minor} on {machine.cores()} cores")
    problem = run_python(
        ["-m", *INSTALL],
        end,
        MCR_FAST_BUILD="cuda",
        TORCH_CUDA_ARCH_LIST=f"{major}.{minor}",
        NVCC_APPEND_FLAGS="--split-compile=0",  # kernels of one file beside each other
    )
    problem = problem or run_python(["-c", LOADED], end)
    if problem:  # Triton's kernels need none
        run_python(["-m", *INSTALL], monotonic() + 60, MCR_FAST_BUILD="none")
    return figure("CUDA library", monotonic() - start, problem or "compiled"), problem


def warm_up(end: float) -> tuple[dict[str, str], str]:
    """Triton's kernels of the rows, in as many processes as there are cores."""
    start, workers = monotonic(), machine.cores()

    def part(at: int) -> str:
        program = [str(ROOT / "tests" / "modelled.py"), "warm", f"{at}/{workers}"]
        return run_python(program, end, MCR_FAST_LAUNCHED="1")

    with ThreadPoolExecutor(workers) as pool:
        problems = sorted({problem for problem in pool.map(part, range(workers)) if problem})
    problem = "; ".join(problems)
    return figure("Triton's kernels", monotonic() - start, problem or "compiled"), problem
