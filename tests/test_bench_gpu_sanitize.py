"""compute-sanitizer in `python -m bench gpu`: what it runs, how its reports are read; no GPU."""

import itertools
import os
import stat
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest

pytest.importorskip("triton")

from bench.gpu import report, sanitize
from bench.gpu.cases import check_cases
from bench.gpu.sanitize import Run, cases_of, planned, reports, verdict
from bench.results import ENVIRONMENT
from mcr_fast.ops.registry import with_kernels

OPS = with_kernels("triton")
TOOL = Path("/toolkit/compute-sanitizer")
CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
OUT_OF_BOUNDS = """\
========= COMPUTE-SANITIZER
some output of the program
========= Invalid __global__ write of size 4 bytes
=========     at void mcr::cuda::<unnamed>::squared_error_kernel<float, float, (int)4>(int)+0x1b0
=========     by thread (31,0,0) in block (2,0,0)
=========     Access to 0x7f1c0a000400 is out of bounds
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame:  [0x2f1a] in libmcr_fast_cuda.so
=========
========= ERROR SUMMARY: 3 errors
"""
RACE = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at mcr::cuda::hold_rows_kernel(float*)+0x120
=========     and Read access at mcr::cuda::hold_rows_kernel(float*)+0x140 [124 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
UNWRITTEN = """\
========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::reduce_kernel<(int)512, (int)1>(T3)+0x70
=========     by thread (0,0,0) in block (0,0,0)
=========
========= ERROR SUMMARY: 1 error
"""
NO_DEVICE = """\
========= COMPUTE-SANITIZER
========= Error: Target application terminated before first instrumented API call
"""


def run(tool="memcheck", backend="cuda", op="reconstruction_loss"):
    return Run(op, backend, tool, 0)


@pytest.mark.parametrize(
    ("tool", "output", "code", "passed", "why"),
    [
        ("memcheck", CLEAN, 0, "yes", ""),
        (
            *("memcheck", OUT_OF_BOUNDS, 97, "no"),
            "3 errors of memcheck, the first: Invalid __global__ write of size 4 bytes at void "
            "mcr::cuda::<unnamed>::squared_error_kernel",
        ),
        ("racecheck", RACE, 97, "no", "Race reported between Write access at mcr::cuda"),
        ("racecheck", "========= RACECHECK SUMMARY: 0 hazards displayed", 0, "yes", ""),
        ("initcheck", UNWRITTEN, 97, "yes", ""),  # of a kernel of torch
        ("initcheck", UNWRITTEN.replace("at::native", "mcr::cuda"), 97, "no", "mcr::cuda"),
        ("memcheck", NO_DEVICE, 255, "not run", "gave no summary, code 255"),
        ("synccheck", CLEAN, 1, "no", "the inputs ended with 1 under synccheck"),
        ("synccheck", CLEAN, 97, "no", "errors of synccheck"),
    ],
)
def test_verdicts(tool, output, code, passed, why):
    found = verdict(run(tool), output, code)
    assert found[0] == passed
    assert why in found[1]
    assert bool(found[1]) == (passed != "yes")


def test_reports_are_told_apart():
    found = list(reports(OUT_OF_BOUNDS + RACE))
    assert len(found) == 2
    assert found[0].endswith("in libmcr_fast_cuda.so")
    assert "124 hazards" in found[1]


def test_commands():
    usage = "  --kernel-name arg    key1=val1"
    command = run().command(TOOL, usage, Path("results"))
    assert command[:3] == [str(TOOL), "--tool", "memcheck"]
    assert command[command.index("--kernel-name") + 1] == "kns=3mcr4cuda"
    at = command.index(sys.executable)
    assert command[at : at + 4] == [sys.executable, "-m", "bench.gpu.check", "results"]
    assert "--run-only" in command[at:]
    assert "reconstruction_loss/N8_D16_16_bfloat16" in command[at:]
    older = run().command(TOOL, "  --kernel-regex arg", Path("results"))
    assert older[older.index("--kernel-regex") + 1] == "kns=3mcr4cuda"
    # it must see what other kernels write; Triton's names have no common part
    for other in (run("initcheck"), run("memcheck", "triton")):
        assert "kns=3mcr4cuda" not in other.command(TOOL, usage, Path("results"))


def test_every_tensor_is_its_own_allocation_where_that_matters():
    name = "PYTORCH_NO_CUDA_MEMORY_CACHING"
    found = {tool: run(tool).environment().get(name) for tool in sanitize.TOOLS["cuda"]}
    assert found == {"memcheck": "1", "initcheck": "1", "racecheck": None, "synccheck": None}


def test_small_inputs_of_every_op():
    for op, backend in itertools.product((*OPS, "gather_add"), sanitize.TOOLS):
        cases = cases_of(op, backend)
        assert 2 <= len(cases) <= 14
        assert not any(case.poisoned or "production" in case.name for case in cases)
        assert {case.key for case in cases} <= set(check_cases())
    assert any("C1025" in case.name for case in cases_of("row_divergence", "cuda"))
    far = [case.name for case in cases_of("permuted_divergence", "cuda") if "far" in case.name]
    assert far == ["far_N701_K15_C50_cyclic_float16", "far_N75_K7_C1000_table_bfloat16"]
    assert not any("far" in case.name for case in cases_of("permuted_divergence", "triton"))


def test_plan():
    runs = planned([("nt_xent", "cuda"), ("nt_xent", "triton"), ("gather_add", "triton")])
    assert [(r.op, r.backend, r.tool) for r in runs[-2:]] == [
        ("nt_xent", "triton", "memcheck"),
        ("gather_add", "triton", "memcheck"),
    ]
    assert [r.tool for r in runs[:4]] == list(sanitize.TOOLS["cuda"])
    assert len({r.number for r in runs}) == len(runs) == 6


FAKE = """#!{python}
import os, sys, time
arguments = sys.argv[1:]
if "--help" in arguments:
    print("  --kernel-name arg")
    sys.exit()
tool = arguments[arguments.index("--tool") + 1]
if tool == "racecheck":
    if os.fork() == 0:  # what it watches goes on by itself
        time.sleep(1000)
    open({started!r}, "w").write(str(os.getpid()))
    time.sleep(1000)
print({output!r})
sys.exit(97 if tool == "memcheck" else 0)
"""


def test_runs_in_their_own_processes(tmp_path, monkeypatch):
    fake, started = tmp_path / "compute-sanitizer", tmp_path / "started"
    fake.write_text(FAKE.format(python=sys.executable, started=str(started), output=OUT_OF_BOUNDS))
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert sanitize.find() == fake
    runs = planned([("nt_xent", "cuda")])[:2]
    rows = sanitize.sanitize(runs, tmp_path, 2, monotonic() + 5)
    assert [(row["checks"], row["passed"]) for row in rows] == [
        ("memcheck", "no"),
        ("racecheck", "not run"),
    ]
    assert rows[1]["detail"] == "not finished in time"
    group = started.read_text()
    left = subprocess.run(
        ["ps", "-o", "stat=", "-g", group], capture_output=True, text=True, check=False
    )
    assert not [state for state in left.stdout.split() if not state.startswith("Z")]
    late = sanitize.sanitize(runs, tmp_path, 2, monotonic() - 1)
    assert {row["detail"] for row in late} == {"out of time"}


def test_missing_tool_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(sanitize, "find", lambda: None)
    rows = sanitize.sanitize(planned([("nt_xent", "cuda")]), tmp_path, 2, monotonic() + 5)
    assert {(row["passed"], row["detail"]) for row in rows} == {
        ("not run", "compute-sanitizer is not installed")
    }


def test_summary_has_the_verdicts():
    case = {"op": "nt_xent", "backend": "cuda", "case": "a", "checks": "bound"}
    case |= {"passed": "yes", "detail": ""}
    first, second, *_ = planned([("nt_xent", "cuda")])
    stamp = dict.fromkeys(ENVIRONMENT, "1") | {"date": "2030-01-02 03:04"}
    rows = [case, first.row(CLEAN, 0), sanitize.not_run(second, "out of time")]
    (line,) = report.verification(rows, stamp)
    assert "verified: 1 cases right, 0 wrong, 0 not run; compute-sanitizer: " in line
    assert "memcheck clean, racecheck not run" in line
    (line,) = report.verification([case, first.row(OUT_OF_BOUNDS, 97)], stamp)
    assert "FAILED: 1 cases right, 0 wrong, 0 not run; compute-sanitizer: memcheck ERRORS" in line
    (line,) = report.verification([first.row(CLEAN, 0)], stamp)
    assert "incomplete: 0 cases right" in line
