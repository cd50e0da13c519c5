"""Log-log plots of results: time and memory over each axis that was swept."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.registry import Benchmark, benchmarks
from bench.results import Row, number, read

LABELS = {
    "ours": "mcr_fast",
    "reference": "reference",
    "eager": "best eager",
    "compile": "torch.compile of it",
    "released": "released formulation",
    "pml": "pytorch-metric-learning",
    "liger": "Liger",
}
# colours that stay apart for colour-blind readers (Okabe and Ito), and markers for print
STYLES = {
    "ours": ("#D55E00", "o"),
    "reference": ("#999999", "v"),
    "eager": ("#0072B2", "s"),
    "compile": ("#56B4E9", "D"),
    "released": ("#009E73", "^"),
    "pml": ("#CC79A7", "P"),
    "liger": ("#E69F00", "X"),
}
MEANINGS = {"N": "rows N", "K": "permutations K", "C": "classes C", "L": "embedding rows L"}


def plot(folder: Path) -> list[Path]:
    """Draw every op whose results are in the folder; returns the images."""
    written = []
    for stem, benchmark in benchmarks().items():
        rows = read(folder / f"{stem}.csv")
        rows = [row for row in rows if row["mode"] == "full" and row["p50_ms"]]
        axes = [axis for axis in benchmark.axes if _points(benchmark, axis, rows)]
        if axes:
            path = folder / f"{stem}.png"
            _figure(benchmark, axes, rows, path)
            written.append(path)
    return written


def _points(benchmark: Benchmark, axis: str, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of the cases on an axis."""
    names = {case.name for case in benchmark.cases if axis in case.sweeps}
    return [row for row in rows if row["case"] in names]


def _figure(benchmark: Benchmark, axes: list[str], rows: list[dict[str, str]], path: Path) -> None:
    panels = {"p50_ms": "forward + backward, ms"}
    if any(row["peak_mb"] for row in rows):
        panels["peak_mb"] = "memory above inputs and gradients, MB"
    size = (1.2 + 4.6 * len(axes), 1.4 + 3.2 * len(panels))
    figure, grid = plt.subplots(len(panels), len(axes), figsize=size, squeeze=False, sharex="col")
    for column, axis in enumerate(axes):
        points = _points(benchmark, axis, rows)
        for area, panel in zip(grid[:, column], panels, strict=True):
            _lines(area, axis, points, panel)
        grid[0, column].set_title(benchmark.axes[axis], fontsize=10)
        bottom = grid[-1, column]
        bottom.set_xlabel(MEANINGS[axis])
        ticks = sorted({float(row[axis]) for row in points})
        bottom.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
        bottom.xaxis.set_minor_formatter(NullFormatter())
    for area, label in zip(grid[:, 0], panels.values(), strict=True):
        area.set_ylabel(label, fontsize=9)
    handles, names = grid[0, 0].get_legend_handles_labels()
    last = max(rows, key=lambda row: row["date"])
    environment = f"{last['device']}, threads: {last['threads']}, torch {last['torch']}"
    figure.suptitle(f"{benchmark.op}\n{environment}", fontsize=10, y=0.995)
    top = 1 - 0.45 / size[1]
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, top)}
    figure.legend(handles, names, ncols=3, frameon=False, fontsize=8.5, **place)
    figure.tight_layout(rect=(0, 0, 1, top - 0.3 / size[1]))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _lines(area: Axes, axis: str, points: list[dict[str, str]], column: str) -> None:
    """One line a provider, with the band between the 20th and the 80th percentile for times."""
    for provider, label in LABELS.items():
        line = sorted(
            ((float(row[axis]), row) for row in points if row["provider"] == provider),
            key=lambda point: point[0],
        )
        line = [(x, row) for x, row in line if number(row, column)]
        if not line:
            continue
        colour, marker = STYLES[provider]
        xs = [x for x, _ in line]
        front = {"linewidth": 2.2, "zorder": 3} if provider == "ours" else {"linewidth": 1.4}
        area.plot(
            xs,
            _column(line, column),
            color=colour,
            marker=marker,
            markersize=5,
            label=label,
            **front,
        )
        if column == "p50_ms":
            low, high = _column(line, "p20_ms"), _column(line, "p80_ms")
            area.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
    area.set_xscale("log", base=2)
    area.set_yscale("log")
    area.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    area.grid(True, which="major", alpha=0.3)


def _column(line: list[tuple[float, Row]], column: str) -> list[float]:
    return [number(row, column) or float("nan") for _, row in line]
