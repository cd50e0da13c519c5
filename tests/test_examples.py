"""The demo runs, prints its whole table and writes its plot."""

import re
from pathlib import Path

import pytest
from programs import ROOT, run_python

for needed in ("sklearn", "matplotlib", "tqdm", "tabulate"):
    pytest.importorskip(needed)

pytestmark = pytest.mark.slow

METHODS = ("left half alone", "right half alone", "ensemble", "joint", "multi-loss", "MCR")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[str, Path]:
    """What a quick run prints, and its folder."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    script = str(ROOT / "examples/train_digits.py")
    done = run_python(script, "--quick", "--out", str(folder), cwd=folder.parent)
    return done.stdout, folder


def row(printed: str, method: str) -> list[str]:
    """A row's cells, without the method's name."""
    lines = [line for line in printed.splitlines() if line.startswith(f"{method}  ")]
    assert lines, f"no row {method!r} in\n{printed}"
    return re.split(r"\s{2,}", lines[0].strip())[1:]


@pytest.mark.parametrize("method", METHODS)
def test_row_is_there_and_finite(demo, method):
    cells = row(demo[0], method)
    assert len(cells) == 5
    for cell in cells:
        numbers = [float(x) for x in re.split("[±/]", cell)] if cell != "-" else []
        assert all(0 <= x <= 100 for x in numbers)  # false for NaN
    assert "-" not in cells[:2]
    fused = method in ("joint", "multi-loss", "MCR")
    assert all(cell != "-" for cell in cells) == fused


def test_importance_adds_up(demo):
    left, right, _ = (float(x) for x in re.split("[±/]", row(demo[0], "MCR")[4]))
    assert left + right == pytest.approx(100, abs=0.2)


def test_says_whether_mcr_is_better(demo):
    for other in ("joint", "multi-loss", "ensemble"):
        verdict = rf"against {other}:.*: (better|worse|no clear difference)$"
        assert re.search(verdict, demo[0], re.MULTILINE), demo[0]


def test_times_the_released_formulation(demo):
    pytest.importorskip("pytorch_metric_learning")
    fused, released = (
        float(re.search(rf"{name}\s+([\d.]+) ms a step", demo[0])[1])
        for name in ("fused", "released")
    )
    assert 0 < fused < released


def test_writes_the_plot(demo):
    data = (demo[1] / "train_digits.png").read_bytes()
    assert data.startswith(PNG_SIGNATURE)
    assert len(data) > 10_000
