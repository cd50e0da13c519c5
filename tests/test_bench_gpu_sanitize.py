"""compute-sanitizer in `python -m bench gpu`: what it runs, how its reports are read; no GPU."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest

pytest.importorskip("triton")

from bench.gpu import report, sanitize
from bench.gpu.sanitize import Run, planned, reports, verdict, watched
from bench.gpu.suite import Item
from bench.results import ENVIRONMENT

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


def item(op="nt_xent", backend="cuda", case="a", check="repeat"):
    return Item.named(f"suite.py::test[{backend}-{op}-{case}-{check}]")


def run(tool="memcheck", backend="cuda"):
    return Run("nt_xent", backend, tool, 0, (item(backend=backend).nodeid,))


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
        ("synccheck", CLEAN, 1, "no", "the items ended with 1 under synccheck"),
        ("synccheck", CLEAN, 97, "no", "errors of synccheck"),
    ],
)
def test_verdicts(tool, output, code, passed, why):
    found = verdict(tool, output, code)
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
    command = run().command(TOOL, usage)
    assert command[:3] == [str(TOOL), "--tool", "memcheck"]
    assert command[command.index("--kernel-name") + 1] == "kns=3mcr4cuda"
    at = command.index(sys.executable)
    assert command[at : at + 5] == [sys.executable, "-m", "pytest", "--device", "cuda"]
    assert command[-1] == "suite.py::test[cuda-nt_xent-a-repeat]"
    older = run().command(TOOL, "  --kernel-regex arg")
    assert older[older.index("--kernel-regex") + 1] == "kns=3mcr4cuda"
    # it must see what other kernels write; Triton's names have no common part
    for other in (run("initcheck"), run("memcheck", "triton")):
        assert "kns=3mcr4cuda" not in other.command(TOOL, usage)


def test_every_tensor_is_its_own_allocation_where_that_matters():
    name = "PYTORCH_NO_CUDA_MEMORY_CACHING"
    found = {tool: run(tool).environment().get(name) for tool in sanitize.TOOLS["cuda"]}
    assert found == {"memcheck": "1", "initcheck": "1", "racecheck": None, "synccheck": None}


def test_small_items_are_watched():
    quick = [
        item(case=f"L{at:02}", check=check) for at in range(25) for check in ("bound", "repeat")
    ]
    quick += [
        item("row_divergence", case="R1"),
        item("row_divergence", case="shape_R9_N4_C1025_jsd_float32"),
    ]
    large = [
        item("row_divergence", case="R9_N4_C4096"),
        item("nt_xent", case="tiled_L128_D64_classes6_float32_T0.5"),
    ]
    found = watched(quick, [*quick, *large])
    assert [i.case for i in found[:-3]] == [f"L{at:02}" for at in range(0, 25, 3)]
    assert found[-3:] == [quick[-2], quick[-1], large[1]]
    assert {i.check for i in found} == {"repeat"}


def test_plan():
    items = [item(), item("sup_con"), item(check="strided"), item("sup_con", "triton")]
    runs = planned(items)
    assert [(r.op, r.backend, r.tool) for r in runs[-1:]] == [("sup_con", "triton", "memcheck")]
    assert [r.tool for r in runs[:-1:2]] == list(sanitize.TOOLS["cuda"])
    assert len({r.number for r in runs}) == len(runs) == 9
    assert runs[0].nodeids == (items[0].nodeid, items[2].nodeid)


FAKE = """#!/bin/sh
case "$*" in
*--help*) echo "  --kernel-name arg" ;;
*racecheck*)  # what it watches goes on by itself
    sleep 1000 &
    echo $$ > {started}
    sleep 1000 ;;
*) cat {output}; case "$*" in *memcheck*) exit 97 ;; esac ;;
esac
"""


def test_runs_in_their_own_processes(tmp_path, monkeypatch):
    fake, started = tmp_path / "compute-sanitizer", tmp_path / "started"
    (tmp_path / "output").write_text(OUT_OF_BOUNDS)
    fake.write_text(FAKE.format(started=started, output=tmp_path / "output"))
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert sanitize.find() == fake
    runs = planned([item()])[:2]
    found = []
    sanitize.sanitize(runs, 2, monotonic() + 2, found.extend)
    rows = {row["checks"]: row for row in found}
    assert {tool: row["passed"] for tool, row in rows.items()} == {
        "memcheck": "no",
        "racecheck": "not run",
    }
    assert rows["racecheck"]["detail"] == "not finished in time"
    group = started.read_text()
    left = subprocess.run(
        ["ps", "-o", "stat=", "-g", group], capture_output=True, text=True, check=False
    )
    assert not [state for state in left.stdout.split() if not state.startswith("Z")]
    late = []
    sanitize.sanitize(runs, 2, monotonic() - 1, late.extend)
    assert {row["detail"] for row in late} == {"out of time"}


def test_missing_tool_is_said(monkeypatch):
    monkeypatch.setattr(sanitize, "find", lambda: None)
    rows = []
    sanitize.sanitize(planned([item()]), 2, monotonic() + 5, rows.extend)
    assert {(row["passed"], row["detail"]) for row in rows} == {
        ("not run", "compute-sanitizer is not installed")
    }


def test_summary_has_the_verdicts():
    checked = item().row("passed")
    first, second, *_ = planned([item()])
    stamp = dict.fromkeys(ENVIRONMENT, "1") | {"date": "2030-01-02 03:04"}
    clean, bad = (first.row(*verdict(first.tool, out, 0)) for out in (CLEAN, OUT_OF_BOUNDS))
    (line,) = report.verification([checked, clean, second.row("not run", "out of time")], stamp)
    assert "verified: 1 checks right, 0 wrong, 0 not run; compute-sanitizer: " in line
    assert "memcheck clean, racecheck not run" in line
    (line,) = report.verification([checked, bad], stamp)
    assert "FAILED: 1 checks right, 0 wrong, 0 not run; compute-sanitizer: memcheck ERRORS" in line
    (line,) = report.verification([clean], stamp)
    assert "incomplete: 0 checks right" in line
