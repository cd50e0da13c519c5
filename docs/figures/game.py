"""Draw the figures of how-it-works.md, each for a light and a dark page.

    python docs/figures/game.py [FOLDER]

Bars are softmaxes and the divergence that of the numbers below; factors are the library's own.
"""

import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from mcr_fast.functional import row_divergence
from mcr_fast.game import head_factor, route_factors

matplotlib.use("svg")
COLOURS = {
    "light": {"ink": "#1f2430", "grey": "#6b7280", "one": "#2563b0", "two": "#b45309"},
    "dark": {"ink": "#e6e8ee", "grey": "#a0a6b4", "one": "#7db4ff", "two": "#f5b05e"},
}
FACTORS = {1: ("+1", "-"), -1: ("\u22121", "--"), 0: ("0", ":")}  # never by colour alone
CLEAN = torch.tensor([[0.2, 1.6, -0.4, 0.4]])  # logits of f(Z_1[i], Z_2[i])
PERTURBED = torch.tensor([[1.5, -0.1, -0.3, 0.6]])  # of f(Z_1[j], Z_2[i])
WORDS = {
    "greedy": "mine up, the others' down",
    "independent": "mine only",
    "collaborative": "an ordinary loss",
}


def box(ax: Axes, x: float, y: float, text: str, colour: str, width: float = 1.0) -> None:
    """A rounded box around a word, its left edge at x and its middle at y."""
    size = 12 if "$" in text else 10
    patch = FancyBboxPatch(
        (x, y - 0.3), width, 0.6, boxstyle="round,pad=0.04", fc=colour + "22", ec=colour, lw=1.6
    )
    ax.add_patch(patch)
    ax.text(x + width / 2, y, text, ha="center", va="center", color=colour, fontsize=size)


def arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float = 0.0
) -> None:
    """An arrow, bent by so much."""
    style = {
        "arrowstyle": "-|>",
        "color": colour,
        "lw": 1.6,
        "connectionstyle": f"arc3,rad={bend}",
        "shrinkA": 0,
        "shrinkB": 0,
    }
    ax.annotate("", xy=end, xytext=start, arrowprops=style)


def bars(ax: Axes, x: float, y: float, logits: torch.Tensor, name: str, ink: str) -> None:
    """A prediction: one bar a class."""
    for c, height in enumerate(logits.softmax(-1)[0].tolist()):
        ax.bar(x + 0.24 * c, 1.3 * height, 0.18, bottom=y - 0.35, color=ink, alpha=0.75)
    ax.text(x + 0.36, y - 0.44, name, ha="center", va="top", color=ink, fontsize=12)


def permutation(ink: str, grey: str, one: str, two: str) -> plt.Figure:
    """What D of {1} compares. The perturbed row has a line of its own: it is none of the batch."""
    figure, ax = plt.subplots(figsize=(8.4, 3.4))
    ax.set(xlim=(-0.75, 10.35), ylim=(-0.4, 3.75))
    ax.axis("off")
    of_i, perturbed, of_j = 2.75, 1.2, 0.0
    for y, row in ((of_i, "i"), (of_j, "j")):
        ax.text(-0.2, y, f"row ${row}$", ha="right", va="center", color=grey, fontsize=12)
        box(ax, 0.0, y, f"$Z_1[{row}]$", one)
        box(ax, 1.2, y, f"$Z_2[{row}]$", two)
    for y, donor in ((of_i, "i"), (perturbed, "j")):
        box(ax, 3.6, y, f"$Z_1[{donor}]$", one)
        box(ax, 4.8, y, "$Z_2[i]$", two)
        arrow(ax, (5.95, y), (6.45, y), ink)
        box(ax, 6.6, y, "$f$", ink, 0.5)
        arrow(ax, (7.25, y), (7.75, y), ink)
    arrow(ax, (2.35, of_i), (3.5, of_i), grey)
    arrow(ax, (0.5, of_j + 0.37), (3.5, perturbed), one, -0.2)
    arrow(ax, (1.9, of_i - 0.37), (5.1, perturbed + 0.39), two, 0.12)
    bars(ax, 7.95, of_i, CLEAN, "clean, $p$", ink)
    bars(ax, 7.95, perturbed, PERTURBED, "perturbed, $q$", ink)
    value = row_divergence(PERTURBED, CLEAN, torch.zeros(1, dtype=torch.int64)).item()
    ax.text(9.75, 2.1, "JSD$(p, q)$", ha="center", color=ink, fontsize=12)
    ax.text(9.75, 1.7, f"= {value:.2f} nats", ha="center", color=ink, fontsize=11)
    ax.text(1.1, 3.5, "batch", ha="center", color=grey, fontsize=12)
    ax.text(4.7, 3.5, "what the fusion sees", ha="center", color=grey, fontsize=12)
    return figure


def edge(ax: Axes, reward: int, encoder: int, factor: int, colour: str) -> None:
    """The line from a reward to an encoder, with its factor beside it."""
    label, line = FACTORS[factor]
    start, end = (0.7 + 2.4 * reward, 1.56), (0.7 + 2.4 * encoder, 0.36)
    ax.plot(*zip(start, end, strict=True), ls=line, color=colour, lw=1.8)
    if reward == encoder:
        x, y = start[0] + (0.34 if reward else -0.34), 0.96
    else:  # a third of the way down, above the line
        x, y = start[0] + 0.34 * (end[0] - start[0]), 1.56 - 0.34 * 1.2 + 0.24
    ax.text(x, y, label, ha="center", va="center", color=colour, fontsize=12)


def routing(ink: str, grey: str, one: str, two: str) -> plt.Figure:
    """Which factor each encoder's gradient gets, for each strategy."""
    figure, axes = plt.subplots(1, 3, figsize=(8.8, 3.5))
    figure.subplots_adjust(wspace=0.08)
    for ax, (strategy, words) in zip(axes, WORDS.items(), strict=True):
        ax.set(xlim=(-0.2, 4.0), ylim=(-1.15, 3.3))
        ax.axis("off")
        ax.text(1.9, 3.1, strategy, ha="center", color=ink, fontsize=13, weight="bold")
        ax.text(1.9, 2.65, words, ha="center", color=grey, fontsize=10.5)
        for m, colour in enumerate((one, two)):
            box(ax, 2.4 * m, 1.9, f"$D_{{\\{{{m + 1}\\}}}}$", colour, 1.4)
            box(ax, 2.4 * m, 0.0, f"encoder {m + 1}", colour, 1.4)
            for n, factor in enumerate(route_factors(strategy, 1 << m, 2)):
                edge(ax, m, n, factor, colour)
        shared = head_factor(strategy, 1, 2)
        ax.text(1.9, -0.85, f"shared: {shared}", ha="center", color=ink, fontsize=12)
    return figure


def main() -> None:
    """Write both figures in both colours."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    plt.rcParams.update({"svg.hashsalt": "mcr_fast", "mathtext.fontset": "stix"})
    for name, draw in (("permutation", permutation), ("routing", routing)):
        for scheme, colours in COLOURS.items():
            figure = draw(**colours)
            path = folder / f"{name}-{scheme}.svg"
            figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    main()
