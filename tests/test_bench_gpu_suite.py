"""`python -m bench gpu` runs tests/suite: a crash costs the item that ran; needs no GPU."""

import sys
from time import monotonic

import pytest
import torch

pytest.importorskip("tabulate")
pytest.importorskip("triton")

from bench.gpu import processes, suite
from bench.gpu.processes import run_items
from bench.gpu.suite import Item, all_of, check, collect, in_turns, without_items

CONFTEST = """
import json, pytest

def pytest_addoption(parser):
    parser.addoption("--device")
    parser.addoption("--results")
    parser.addoption("--slow", action="store_true")

def pytest_collection_modifyitems(config, items):
    if not config.option.slow:
        items[:] = [item for item in items if "slow" not in item.name]

def pytest_runtest_logreport(report):
    file = pytest.results
    if file and (report.when == "call" or report.skipped):
        line = {"nodeid": report.nodeid, "outcome": report.outcome, "seconds": report.duration}
        with open(file, "a") as out:
            out.write(json.dumps({**line, "message": str(report.longrepr or "")}) + "\\n")

def pytest_configure(config):
    assert config.option.device == "cuda"
    pytest.results = config.option.results
"""
TESTS = """
import os, sys, time
import pytest

@pytest.mark.parametrize("name", {names!r})
def test(name):
    if "skipped" in name:
        pytest.skip("of no use here")
    assert "wrong" not in name, "off by 1"
    if "crash" in name:
        print("illegal memory access", file=sys.stderr, flush=True)
        os.abort()
    if "hang" in name:
        time.sleep(60)
"""


@pytest.fixture
def items_of(tmp_path, monkeypatch):
    """Makes the suite one of items with these names; returns what it collects."""

    def make(*names, slow=True):
        folder = tmp_path / "suite"
        folder.mkdir()
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "test_suite.py").write_text(TESTS.format(names=names))
        (tmp_path / "pytest.ini").write_text("[pytest]\naddopts =\n")
        monkeypatch.setenv("PYTHONPATH", str(processes.ROOT))
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        monkeypatch.setattr(processes, "ROOT", tmp_path)
        monkeypatch.setattr(suite, "SUITE", "suite")
        return collect(slow=slow)

    return make


def test_names_of_items():
    item = Item.named("tests/suite/test_suite.py::test[cuda-nt_xent-N8_D3-1e-05-bound]")
    assert item[1:] == ("cuda", "nt_xent", "N8_D3-1e-05", "bound")
    assert all_of("nt_xent", "cuda")[1:] == ("cuda", "nt_xent", "all", "all")
    assert Item.named("tests/suite/test_suite.py::test_other")[1:] == ("",) * 4
    long = item.row("failed", "line\n" * 500, 1.25)
    assert (long["passed"], long["seconds"], len(long["detail"])) == ("no", "1.2", 600)


def test_items_are_collected_by_case(items_of):
    names = ["cuda-op-b-bound", "cuda-op-a-bound", "cuda-op-b-strided", "cpu-op-a-bound"]
    found = items_of(*names, "triton-op-slow_a-bound", slow=False)
    assert [(item.backend, item.case, item.check) for item in found] == [
        *(("cuda", "a", "bound"), ("cuda", "b", "bound"), ("cuda", "b", "strided"))
    ]
    assert {item.backend for item in collect(slow=True)} == {"cuda", "triton"}


def test_every_op_and_backend_gets_as_far():
    names = [("cuda", "a", case) for case in "1234"] + [("triton", "b", case) for case in "12"]
    items = [Item("-".join((*n, c)), *n, c) for n in names for c in ("bound", "repeat")]
    order = in_turns(items)
    assert [case[0][:-6] for case in order] == [
        *("cuda-a-1", "triton-b-1", "cuda-a-2", "cuda-a-3", "triton-b-2", "cuda-a-4")
    ]
    assert all(len(case) == 2 for case in order)


def test_a_suite_that_cannot_be_collected_says_why(items_of, tmp_path):
    items_of("cuda-op-a-bound")
    (tmp_path / "suite" / "conftest.py").write_text("import nothing_of_this_name")
    with pytest.raises(RuntimeError, match="nothing_of_this_name"):
        collect(slow=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a wrong result leaves the device as it is")
def test_a_crash_costs_one_item(items_of, tmp_path, monkeypatch):
    started = []
    command = suite.command

    def counted(results, nodeids):
        started.append(len(nodeids))
        return command(results, nodeids)

    monkeypatch.setattr(suite, "command", counted)
    names = ("a", "b", "crash", "d_wrong", "e", "f_crash", "g", "skipped")
    items = items_of(*(f"cuda-op-{name}-bound" for name in names))
    expected = [("op", "cuda"), ("op", "triton")]
    rows = []
    check(items, tmp_path / "work", 2, monotonic() + 120, rows.extend)
    rows += without_items(rows, expected)
    found = {f"{row['backend']} {row['case']}": row for row in rows}
    assert {name: row["passed"] for name, row in found.items()} == {
        **{"cuda a": "yes", "cuda b": "yes", "cuda crash": "no", "cuda d_wrong": "no"},
        **{"cuda e": "yes", "cuda f_crash": "no", "cuda g": "yes", "triton all": "not run"},
    }
    assert "illegal memory access" in found["cuda crash"]["detail"]
    assert "off by 1" in found["cuda d_wrong"]["detail"]
    assert "no item of" in found["triton all"]["detail"]
    # after each crash, and after the wrong one: without a GPU, the device looks lost
    assert sorted(started) == [1, 2, 2, 4, 4]


@pytest.mark.slow
def test_a_hang_ends_at_the_deadline(items_of, tmp_path):
    nodeids = [item.nodeid for item in items_of(*(f"cuda-op-{n}-x" for n in ("a", "hang", "i")))]
    start = monotonic()
    lines = {}
    run_items([nodeids], suite.command, tmp_path, 1, start + 8, lines.update)
    found = [lines[nodeid]["outcome"] for nodeid in nodeids]
    assert found == ["passed", "not run", "not run"]
    assert "not finished in time" in lines[nodeids[1]]["message"]
    assert monotonic() - start < 40


def test_a_process_that_cannot_start_is_wrong(tmp_path):
    start = [sys.executable, "-c", "import nothing_of_this_name"]
    lines = {}
    run_items([["a"], ["b"]], lambda *_: start, tmp_path, 1, monotonic() + 60, lines.update)
    assert [line["outcome"] for line in lines.values()] == ["failed", "failed"]
    assert "nothing_of_this_name" in lines["a"]["message"]


@pytest.mark.parametrize(
    ("program", "seconds", "silence", "why"),
    [
        ("print('a'); print('b')", 20, 20, ""),
        ("print('a'); print('b'); sys.exit('off by 1')", 20, 20, "ended with 1: off by 1"),
        ("print('a', flush=True); print('b', flush=True); time.sleep(60)", 20, 2, "said nothing"),
        ("print('a', flush=True); print('b', flush=True); time.sleep(60)", 2, 20, "stopped after"),
    ],
)
def test_lines_are_passed_on(program, seconds, silence, why):
    lines, start = [], monotonic()
    command = [sys.executable, "-c", f"import sys, time; {program}"]
    problem = processes.run_lines(command, seconds, silence, lines.append)
    assert problem.startswith(why)
    assert bool(problem) == bool(why)
    assert lines == ["a", "b"]
    assert monotonic() - start < 20
