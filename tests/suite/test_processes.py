"""Items of a process of their own are reported as though they had run in the main session."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
CONFTEST = """
from suite import processes

processes.SHARED, processes.FEW = {"launched": 2}, 1
pytest_configure = processes.configure

def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true")
    processes.add_options(parser)
"""
ITEMS = """
import os
import sys
from pathlib import Path
import pytest

def test_here():
    assert os.environ.get("MCR_FAST_LAUNCHED") is None

@pytest.mark.process("launched")
@pytest.mark.parametrize("what", ["passes", "dies", "skips", "fails", "passes too"])
def test_there(what):
    assert os.environ["MCR_FAST_LAUNCHED"] == "1"
    if what == "dies":
        print("last words", flush=True)
        os._exit(3)
    if what == "skips":
        pytest.skip("why")
    assert what != "fails", "how it fails"

@pytest.mark.process("interpreted")
def test_elsewhere():
    assert os.environ["TRITON_INTERPRET"] == "1"

@pytest.mark.process("beside")
def test_beside():
    Path("started").write_text(" ".join(sys.argv))
"""
EXPECTED = {
    "test_here": "passed",
    "test_there[passes]": "passed",
    "test_there[dies]": "failed",
    "test_there[skips]": "skipped",
    "test_there[fails]": "failed",
    "test_there[passes too]": "passed",
    "test_elsewhere": "passed",
    "test_beside": "passed",
}


@pytest.fixture
def session(tmp_path):
    """Runs pytest over ITEMS; its output, and the lines of --results by the name of the test."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_items.py").write_text(ITEMS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = process(kind)\n")

    def run(*arguments, **variables):
        results = tmp_path / "results"
        results.unlink(missing_ok=True)
        kinds = ("MCR_FAST_LAUNCHED", "MCR_FAST_EMULATED", "TRITON_INTERPRET")
        environment = {k: v for k, v in os.environ.items() if k not in kinds}
        environment |= {"PYTHONPATH": str(TESTS)} | variables
        command = [sys.executable, "-m", "pytest", "-v", "--results", str(results), *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        lines = [json.loads(line) for line in results.read_text().splitlines()]
        return done.stdout, {line.pop("nodeid").partition("::")[2]: line for line in lines}

    return run


def test_every_item_is_reported_and_a_death_costs_one(session, tmp_path):
    output, lines = session()
    assert {name: line["outcome"] for name, line in lines.items()} == EXPECTED
    assert "ended with 3" in lines["test_there[dies]"]["message"]
    assert "how it fails" in lines["test_there[fails]"]["message"]
    assert "--items" in (tmp_path / "started").read_text()
    assert "2 failed, 5 passed, 1 skipped" in output


@pytest.mark.slow
def test_items_can_be_chosen(session):
    _, lines = session("-k", "passes and not too or elsewhere")
    assert list(lines) == ["test_there[passes]", "test_elsewhere"]
    _, lines = session("test_items.py::test_there[fails]", "test_items.py::test_elsewhere", "-x")
    assert list(lines) == ["test_there[fails]"]


def test_beside_nothing_it_runs_here(session, tmp_path):
    _, lines = session("-k", "test_beside")
    assert list(lines) == ["test_beside"]
    assert "--items" not in (tmp_path / "started").read_text()


def test_one_process_of_a_kind_by_hand(session):
    _, lines = session("-k", "not dies", MCR_FAST_LAUNCHED="1")
    assert list(lines) == [
        f"test_there[{what}]" for what in ("passes", "skips", "fails", "passes too")
    ]
