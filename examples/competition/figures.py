"""The figures of the pages."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # writes files, needs no screen
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from .data import FAMILIES
from .intervals import mean
from .outcomes import ENSEMBLE, Outcomes
from .tables import shown

# colours that stay apart for colour-blind readers (Okabe and Ito), and markers for print
STYLES = {
    "joint": ("#5b6770", "s"),
    "multi-loss": ("#E69F00", "^"),
    ENSEMBLE: ("#CC79A7", "D"),
    "OGM": ("#56B4E9", "v"),
    "MMPareto": ("#009E73", "P"),
    "UMT": ("#8c6d31", "X"),
    "MCR": ("#D55E00", "o"),
}
SWEPT = ("speed", "figure1", "digits")


def draw_all(outcomes: Outcomes, folder: Path) -> list[Path]:
    """One figure for each sweep that has rows, and the ranks."""
    written = [sweep(outcomes, family, folder) for family in SWEPT if outcomes.places(family)]
    return written + ([rank_bars(outcomes, folder)] if outcomes.ranks() else [])


def save(figure: plt.Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # without the date, so that equal results give equal files
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
    return path


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)


def sweep(outcomes: Outcomes, family: str, folder: Path) -> Path:
    """Left the accuracies of the main methods, right the differences to joint training."""
    places = outcomes.places(family)
    positions = np.arange(len(places))
    methods = [name for name in STYLES if name in outcomes.methods(family)]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.9), layout="constrained")
    for name in methods:
        color, marker = STYLES[name]
        style = {"color": color, "marker": marker, "markersize": 5, "linewidth": 1.6}
        heights = [mean(outcomes.figures(place, name)) for place in places]
        left.plot(positions, heights, label=shown(name), **style)
        if name != "joint":
            found = [outcomes.difference(place, name, "joint") for place in places]
            errors = [x.half_width for x in found]
            shift = 0.06 * (methods.index(name) - len(methods) / 2)
            heights = [x.mean for x in found]
            right.errorbar(positions + shift, heights, errors, capsize=2, **style)
    alone = [mean(outcomes.better_alone(place)) for place in places]
    left.plot(positions, alone, color="#999999", linestyle=":", label="better modality alone")
    right.axhline(0, color="#5b6770", linewidth=1)
    left.set(title="Test accuracy", ylabel="%")
    right.set(title="Against joint training, 95 % intervals paired by seed", ylabel="points")
    for axes in (left, right):
        axes.set_xticks(positions, [f"{value:g}" for _, value in places])
        axes.set_xlabel(FAMILIES[family].axis)
        tidy(axes)
    left.legend(frameon=False, fontsize=8)
    figure.suptitle(FAMILIES[family].title)
    return save(figure, folder / f"{family}.png")


def rank_bars(outcomes: Outcomes, folder: Path) -> Path:
    """Mean ranks over all settings and seeds, the best one on top."""
    found: Sequence[tuple[str, float]] = sorted(
        outcomes.ranks().items(), key=lambda item: item[1], reverse=True
    )
    names, ranks = [name for name, _ in found], [rank for _, rank in found]
    size = (7.0, 0.9 + 0.26 * len(found))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    colors = [STYLES.get(name, ("#b9c0c5", ""))[0] for name in names]
    bars = axes.barh([shown(name) for name in names], ranks, color=colors, height=0.7)
    axes.bar_label(bars, [f"{rank:.1f}" for rank in ranks], padding=3, fontsize=8)
    axes.set(xlabel=f"mean rank over settings and seeds, 1 is best of {len(found)}", xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, folder / "ranks.png")
