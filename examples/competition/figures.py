"""The figures of the pages."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # writes files, needs no screen
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from .data import FAMILIES
from .intervals import BySeed, Interval, mean
from .outcomes import ENSEMBLE, Outcomes, Place
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
SWEPT = ("speed", "hidden", "figure1", "digits")


def draw_all(outcomes: Outcomes, folder: Path) -> list[Path]:
    """One figure for each sweep that has rows, the ranks, and the gains against the sign."""
    written = [sweep(outcomes, family, folder) for family in SWEPT if drawn(outcomes, family)]
    if outcomes.ranks:
        written.append(rank_bars(outcomes, folder))
    if sign_points(outcomes):
        written.append(gain_scatter(outcomes, folder))
    return written


def drawn(outcomes: Outcomes, family: str) -> bool:
    """Whether a sweep has what its figure needs."""
    return bool(outcomes.common_seeds(outcomes.places(family)))


def sign_points(outcomes: Outcomes) -> dict[Place, tuple[Interval, Interval]]:
    """Joint minus better modality alone, and MCR minus joint, where both are measured."""
    found = {
        place: (outcomes.sign(place), outcomes.difference(place, "MCR", "joint"))
        for place in outcomes.all_places()
    }
    return {place: pair for place, pair in found.items() if all(x.measured for x in pair)}


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
    seeds = outcomes.common_seeds(places)

    def over(figures: BySeed) -> float:
        return mean({seed: figures[seed] for seed in seeds if seed in figures})

    methods = [name for name in STYLES if name in outcomes.methods(family)]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.9), layout="constrained")
    for name in methods:
        color, marker = STYLES[name]
        style = {"color": color, "marker": marker, "markersize": 5, "linewidth": 1.6}
        heights = [over(outcomes.figures(place, name)) for place in places]
        left.plot(positions, heights, label=shown(name), **style)
        if name != "joint":
            found = [outcomes.difference(place, name, "joint") for place in places]
            errors = [x.half_width for x in found]
            shift = 0.06 * (methods.index(name) - len(methods) / 2)
            heights = [x.mean for x in found]
            right.errorbar(positions + shift, heights, errors, capsize=2, **style)
    alone = [over(outcomes.better_alone(place)) for place in places]
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
    """Mean ranks over all settings and seeds, the lowest on top."""
    found = sorted(outcomes.ranks.items(), key=lambda item: item[1].mean, reverse=True)
    names, ranks = [shown(name) for name, _ in found], [rank.mean for _, rank in found]
    ends = [[r.mean - r.low for _, r in found], [r.high - r.mean for _, r in found]]
    size = (7.0, 0.9 + 0.26 * len(found))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    colors = [STYLES.get(name, ("#b9c0c5", ""))[0] for name, _ in found]
    axes.barh(names, ranks, xerr=ends, color=colors, height=0.7, error_kw={"capsize": 2})
    axes.set(xlabel=f"mean rank of {len(found)}, 95 % intervals over seeds", xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, folder / "ranks.png")


def gain_scatter(outcomes: Outcomes, folder: Path) -> Path:
    """MCR's gain over joint training against the sign, a point for each setting."""
    points = sign_points(outcomes)
    figure, axes = plt.subplots(figsize=(7.0, 4.6), layout="constrained")
    colors = plt.get_cmap("tab10")
    for i, family in enumerate(dict.fromkeys(place[0] for place in points)):
        pairs = [pair for place, pair in points.items() if place[0] == family]
        x, y = ([pair[k].mean for pair in pairs] for k in (0, 1))
        dx, dy = ([pair[k].half_width for pair in pairs] for k in (0, 1))
        style = {"fmt": "o", "markersize": 5, "linewidth": 0.8, "capsize": 2}
        axes.errorbar(x, y, dy, dx, color=colors(i), label=FAMILIES[family].title, **style)
    axes.axhline(0, color="#5b6770", linewidth=1)
    axes.axvline(0, color="#5b6770", linewidth=1)
    axes.set(xlabel="joint minus better modality alone, points", ylabel="MCR minus joint, points")
    tidy(axes)
    axes.legend(frameon=False, fontsize=8)
    return save(figure, folder / "gains.png")
