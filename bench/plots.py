"""Log-log plots of results: time and memory over each axis that was swept."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.goals import TimedRow
from bench.registry import Benchmark, benchmarks
from bench.results import NAMES, Row, number, read, significant

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
    for provider, label in NAMES.items():
        found = [row for row in points if row["provider"] == provider and number(row, column)]
        found.sort(key=lambda row: float(row[axis]))
        if not found:
            continue
        colour, marker = STYLES[provider]
        look = {"color": colour, "marker": marker, "markersize": 5, "label": label}
        front = {"linewidth": 2.2, "zorder": 3} if provider == "ours" else {"linewidth": 1.4}
        xs = [float(row[axis]) for row in found]
        area.plot(xs, _column(found, column), **look, **front)
        if column == "p50_ms":
            low, high = _column(found, "p20_ms"), _column(found, "p80_ms")
            area.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
    area.set_xscale("log", base=2)
    area.set_yscale("log")
    area.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    area.grid(True, which="major", alpha=0.3)


def _column(rows: list[dict[str, str]], column: str) -> list[float]:
    return [number(row, column) or float("nan") for row in rows]


def plot_goals(path: Path, rows: Sequence[TimedRow], lines: Sequence[Row]) -> None:
    """Every row's times, forward and backward, as bars with the goal as a line."""
    shown = [row for row in rows if _bars(row, lines)]
    if not shown:
        return
    figure, areas = plt.subplots(len(shown), 1, figsize=(9, 0.5 + 1.45 * len(shown)), squeeze=False)
    for area, row in zip(areas[:, 0], shown, strict=True):
        bars = _bars(row, lines)
        names = [NAMES.get(name, name) for name, _ in bars]
        colours = [STYLES.get(name, STYLES["ours"])[0] for name, _ in bars]
        drawn = area.barh(names, [ms for _, ms in bars], color=colours)
        area.bar_label(drawn, [f"{significant(ms, 3)} ms" for _, ms in bars], padding=3, fontsize=8)
        for goal in row.goals:
            if goal.against == "ms":
                area.axvline(goal.value, color="black", linestyle="--", linewidth=1)
        area.set_xscale("log")
        area.margins(x=0.2)
        area.invert_yaxis()
        area.tick_params(labelsize=8)
        area.set_title(row.label, fontsize=9, loc="left")
    last = max(lines, key=lambda line: line["date"])
    title = f"forward + backward, dashed: goal\n{last['device']}, torch {last['torch']}, "
    figure.suptitle(f"{title}commit {last['commit']}, {last['date'][:10]}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _bars(row: TimedRow, lines: Sequence[Row]) -> list[tuple[str, float]]:
    """(provider, milliseconds) of a row, from a graph where that is judged."""
    found = [
        (line["provider"], number(line, "p50_ms"))
        for line in lines
        if (line["op"], line["case"], line["mode"]) == (row.case.op, row.case.name, row.judged)
    ]
    return [(name, ms) for name, ms in found if ms]
