"""The plot: who decides over the epochs, accuracy over the epochs, and a sensor lost."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from digits_compare import Run
from digits_report import Names, Setting, accuracies, by_setting
from matplotlib.axes import Axes
from train_digits import LOOK_EVERY

matplotlib.use("Agg")  # writes files, needs no screen
import matplotlib.pyplot as plt

COLORS = {"joint": "#5b6770", "multi-loss": "#d98b1f", "MCR": "#1f6fb4", "ensemble": "#b9c0c5"}
CURVES = ("joint", "multi-loss", "MCR")


def draw_curves(axes: Axes, setting: Setting, curve: str) -> None:
    """Mean over the seeds, with a band of one standard deviation."""
    for method in CURVES:
        x = 100 * np.array([getattr(run, curve) for run in setting[method]])  # [seeds, looks]
        mean, deviation = x.mean(0), x.std(0)
        epochs = 1 + LOOK_EVERY * np.arange(len(mean))
        axes.plot(epochs, mean, color=COLORS[method], label=method, linewidth=1.8)
        axes.fill_between(
            epochs, mean - deviation, mean + deviation, color=COLORS[method], alpha=0.18, lw=0
        )
    axes.set(xlabel="epoch", xlim=(0, epochs[-1]))


def draw_lost(axes: Axes, setting: Setting, names: Names) -> None:
    """Accuracy with both sensors, and with either one lost."""
    conditions = {"both": None, f"{names[0]} lost": 0, f"{names[1]} lost": 1}
    places, width = np.arange(len(conditions)), 0.8 / len(COLORS)
    for i, (method, color) in enumerate(COLORS.items()):
        x = [100 * np.array(accuracies(setting[method], lost)) for lost in conditions.values()]
        means, deviations = [v.mean() for v in x], [v.std() for v in x]
        at = places + (i - (len(COLORS) - 1) / 2) * width
        bars = axes.bar(at, means, width, yerr=deviations, color=color, label=method)
        axes.bar_label(bars, [f"{m:.0f}" for m in means], padding=2, fontsize=8)
    axes.set_xticks(places, list(conditions))
    axes.set(title="A sensor lost", ylabel="test accuracy (%)", ylim=(0, 115))


def draw_setting(row: Sequence[Axes], name: str, setting: Setting, names: Names) -> None:
    share, accuracy, lost = row
    draw_curves(share, setting, "importances")
    share.axhline(50, color="black", linewidth=0.8, linestyle=":")
    share.set(title=f"{name}: importance of the {names[1]}", ylabel="share (%)", ylim=(0, 60))
    draw_curves(accuracy, setting, "accuracies")
    final = 100 * np.mean([run.accuracies[-1] for m in CURVES for run in setting[m]])
    accuracy.set(
        title="Accuracy", ylabel="validation accuracy (%)", ylim=(final - 15, min(100, final + 4))
    )
    draw_lost(lost, setting, names)
    accuracy.legend(loc="lower right", frameon=False)
    lost.legend(loc="upper right", frameon=False, ncols=2, fontsize=8)
    for axes in row:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
        axes.set_axisbelow(True)


def plot(runs: Sequence[Run], names: Names, path: Path) -> Path:
    """A row of three panels for each setting."""
    settings = by_setting(runs)
    figure, rows = plt.subplots(
        len(settings), 3, figsize=(14, 4 * len(settings)), layout="constrained", squeeze=False
    )
    for row, (name, setting) in zip(rows, settings.items(), strict=True):
        draw_setting(row, name, setting, names)
    seeds = len({run.seed for run in runs})
    figure.suptitle(
        f"Digits as {names[0]} and {names[1]}: mean and standard deviation over {seeds} seeds"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
