"""The figure of docs/estimator.md."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.estimator.report import FILES
from bench.results import Row, read

COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7")  # Okabe and Ito
LINEAR = "linear, width 512, 6 classes"
NAMES = {"32": "K = 32", "all": "all pairs"}


def draw_figure(folder: Path) -> Path | None:
    """Bias, both variances and time; None without results."""
    rows = [row for row in read(folder / FILES["draws"]) if row["M"] == "2"]
    costs = read(folder / FILES["cost"])
    if not rows or not costs:
        return None
    last = [row for row in rows if row["steps"] == rows[-1]["steps"]]
    figure, areas = plt.subplots(2, 2, figsize=(11, 8.4))
    _bias(areas[0, 0], last)
    _variance(areas[0, 1], last, "value_variance", "value_predicted")
    areas[0, 1].set_title("Variance of the value (lines: by the formula)", fontsize=10)
    _variance(areas[1, 0], last, "encoders_variance", None)
    areas[1, 0].set_title("Variance of the gradient of the encoders", fontsize=10)
    _times(areas[1, 1], costs)
    for area in areas.flat:
        area.grid(True, alpha=0.3)
    where = f"{last[0]['device']}, one thread, torch {last[0]['torch']}, commit {last[0]['commit']}"
    title = "L_MIPD from K donors of each row, against all pairs"
    figure.suptitle(f"{title}, after {last[0]['steps']} steps of training\n{where}", fontsize=10)
    figure.tight_layout()
    path = folder / "estimator.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _sizes(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["N"] for row in rows))


def _bias(area: Axes, rows: list[dict[str, str]]) -> None:
    for scheme, colour in (("cyclic", COLOURS[0]), ("uniform", COLOURS[4])):
        found = [row for row in rows if row["scheme"] == scheme and row["K"] == "8"]
        xs = [int(row["N"]) for row in found]
        ys, errors = ([100 * float(row[x]) for row in found] for x in ("bias", "bias_error"))
        label = f"{scheme} donors, K = 8, ± standard error"
        area.errorbar(xs, ys, errors, fmt="o", color=colour, capsize=3, label=label)
    xs = [int(n) for n in _sizes(rows)]
    area.plot(
        xs,
        [-100 / n for n in xs],
        "--",
        color=COLOURS[4],
        label="expected of uniform donors: -1 / N",
    )
    area.axhline(0, color=COLOURS[0], linestyle="--", linewidth=1)
    _rows_axis(area, xs)
    area.set_title("Bias of the value", fontsize=10)
    area.set_ylabel("percent of the value of all pairs")
    area.legend(fontsize=8)


def _variance(area: Axes, rows: list[dict[str, str]], column: str, predicted: str | None) -> None:
    """Points for cyclic donors by N, all pairs left out: they have none."""
    for n, colour in zip(_sizes(rows), COLOURS, strict=False):
        of_cyclic = [r for r in rows if r["N"] == n and r["scheme"] == "cyclic"]
        found = [row for row in of_cyclic if int(row["K"]) < int(n) - 1]
        counts = [int(row["K"]) for row in found]
        style = "o" if predicted else "o-"
        ys = [float(row[column]) for row in found]
        area.plot(counts, ys, style, color=colour, markersize=4, label=f"N = {n}")
        if predicted:
            area.plot(counts, [float(row[predicted]) for row in found], color=colour, linewidth=1)
    area.set_xscale("log", base=2)
    largest = max(rows, key=lambda row: int(row["N"]))["N"]
    ticks = sorted({int(row["K"]) for row in rows if int(row["K"]) <= 64 and row["N"] == largest})
    area.set_xticks(ticks, [str(k) for k in ticks])
    area.set_yscale("log")
    area.set_xlabel("donors of a row, K (cyclic)")
    area.set_ylabel("variance of the draw / variance between batches")
    area.legend(fontsize=8, ncols=2)


def _times(area: Axes, rows: list[dict[str, str]]) -> None:
    found = [row for row in rows if row["size"] == LINEAR]
    for (term, style), colour in zip((("L_MIPD", "o-"), ("MCRLoss", "s-")), COLOURS, strict=False):
        for count, filled in (("32", colour), ("all", "white")):
            points = [row for row in found if (row["term"], row["K"]) == (term, count)]
            xs = [int(row["N"]) for row in points]
            ys = [float(row["p50_ms"]) for row in points]
            look = {"color": colour, "markerfacecolor": filled, "label": f"{term}, {NAMES[count]}"}
            area.plot(xs, ys, style, **look)
    area.set_yscale("log")
    _rows_axis(area, sorted({int(row["N"]) for row in found}))
    area.set_title(f"Forward and backward pass, fusion: {LINEAR}", fontsize=10)
    area.set_ylabel("time, milliseconds")
    area.legend(fontsize=8)


def _rows_axis(area: Axes, sizes: list[int]) -> None:
    area.set_xscale("log", base=2)
    area.set_xticks(sizes, [str(n) for n in sizes])
    area.set_xlabel("rows of a batch, N")
