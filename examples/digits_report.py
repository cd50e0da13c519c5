"""The table, the sentences under it, and the plot."""

import math
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from digits_evaluate import Curve, Scores
from digits_step_time import StepTime
from matplotlib.axes import Axes
from tabulate import tabulate

matplotlib.use("Agg")  # writes files, needs no screen
import matplotlib.pyplot as plt

Results = dict[str, list[Scores]]  # by method, one entry a seed

COLORS = {"joint": "#5b6770", "multi-loss": "#d98b1f", "MCR": "#1f6fb4"}
ALONE_COLOR = "#b9c0c5"


def spread(values: Iterable[float]) -> str:
    """Mean and sample standard deviation, in percent."""
    x = 100 * np.array(list(values))
    deviation = x.std(ddof=1) if len(x) > 1 else 0.0
    return "-" if np.isnan(x).any() else f"{x.mean():.1f} ± {deviation:.1f}"


def shares(scores: list[Scores]) -> str:
    """Importance of the left and the right half; both deviate alike, since they add up to 100 %."""
    left, right = 100 * np.array([s.importance for s in scores]).mean(0)
    return "-" if np.isnan(left) else f"{left:.1f} / {spread(s.importance[1] for s in scores)}"


def results_table(test: Results, validation: Results) -> str:
    rows = [
        (
            method,
            spread(s.accuracy for s in scores),
            spread(s.accuracy for s in validation[method]),
            *(spread(s.probes[half] for s in scores) for half in range(2)),
            shares(scores),
        )
        for method, scores in test.items()
    ]
    headers = (
        "",
        "test\naccuracy %",
        "validation\naccuracy %",
        "left half\nprobe %",
        "right half\nprobe %",
        "importance %\nleft / right",
    )
    return tabulate(rows, headers, colalign=("left", *["right"] * 5), disable_numparse=True)


def compare_methods(results: Results, method: str, other: str) -> str:
    """The difference over the same test images, with the uncertainty of a test set of this size."""
    hits = [torch.stack([s.correct for s in results[m]]).mean(0) for m in (method, other)]
    gain = 100 * (hits[0] - hits[1])  # [N], each image's mean over seeds
    mean = gain.mean().item()
    half_width = 1.96 * gain.std().item() / math.sqrt(len(gain))
    verdict = "no clear difference"
    if abs(mean) > half_width:
        verdict = "better" if mean > 0 else "worse"
    return (
        f"  against {other + ':':<17s} {mean:+.2f} points, "
        f"95 % interval {mean - half_width:+.2f} to {mean + half_width:+.2f}: {verdict}"
    )


def mean_probe(results: Results, method: str, half: int) -> float:
    return 100 * float(np.mean([s.probes[half] for s in results[method]]))


def time_sentence(timing: StepTime | None) -> str:
    if timing is None:
        return "Time of the loss: not compared, pytorch-metric-learning is not installed."
    return (
        f"Time of L_MIPD + L_Con, forward and backward ({timing.sizes},\n"
        f"one thread), medians of {timing.turns} turns of both:\n"
        f"  fused    {timing.fused:8.2f} ms a step, every row against all others\n"
        f"  released {timing.released:8.2f} ms a step, {timing.released / timing.fused:.0f} times "
        f"as long\n"
        "           (six fusion passes on permuted copies, pytorch-metric-learning's NTXentLoss)"
    )


def print_report(results: Results, validation: Results, timing: StepTime | None) -> None:
    some = results["MCR"]
    print(f"\n{results_table(results, validation)}\n")
    print(
        f"Mean ± standard deviation over {len(some)} seeds, the same {len(some[0].labels)} test "
        "images for all.\n"
        "The weights of multi-loss and MCR were chosen on the validation images.\n"
        "Probe: test accuracy of a linear classifier fitted on the frozen latents of one encoder.\n"
        "Importance: share of a half in how far predictions move (Jensen-Shannon divergence) when\n"
        "that half is taken from another image; all pairs of test images.\n"
    )
    print("Test accuracy of MCR, same images, mean over seeds:")
    for other in ("joint", "multi-loss", "ensemble", "left half alone"):
        print(compare_methods(results, "MCR", other))
    print("What the encoder of the noisy right half learned (probe):")
    alone = mean_probe(results, "right half alone", 1)
    for method in COLORS:
        probe = mean_probe(results, method, 1)
        print(f"  {method:<13s} {probe:.1f} %, {probe - alone:+.1f} against the right half alone")
    print(f"\n{time_sentence(timing)}\n")


def draw_curves(axes: Axes, curves: dict[str, list[list[float]]]) -> None:
    """Mean over the seeds, with a band of one standard deviation."""
    for method, runs in curves.items():
        x = 100 * np.array(runs)  # [seeds, epochs]
        mean, deviation = x.mean(0), x.std(0)
        epochs = np.arange(1, len(mean) + 1)
        axes.plot(epochs, mean, color=COLORS[method], label=method, linewidth=1.8)
        axes.fill_between(
            epochs, mean - deviation, mean + deviation, color=COLORS[method], alpha=0.18, lw=0
        )
    axes.set_xlabel("epoch")
    axes.set_xlim(1, len(mean))


def draw_probes(axes: Axes, results: Results) -> None:
    """What each encoder of the right half learned."""
    methods = ["right half alone", *COLORS]
    probes = [[100 * s.probes[1] for s in results[m]] for m in methods]
    means, deviations = [np.mean(p) for p in probes], [np.std(p) for p in probes]
    colors = [ALONE_COLOR, *COLORS.values()]
    bars = axes.bar(["alone", *COLORS], means, yerr=deviations, color=colors, width=0.65)
    axes.bar_label(bars, [f"{m:.1f}" for m in means], padding=3, fontsize=9)
    axes.margins(y=0.12)


def plot(curves: dict[str, list[Curve]], results: Results, path: Path) -> Path:
    """Accuracy and importance over the epochs, and what the noisy half's encoder learned."""
    figure, (accuracy, share, probes) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    draw_curves(accuracy, {m: [c.accuracy for c in runs] for m, runs in curves.items()})
    accuracy.set(title="Accuracy", ylabel="validation accuracy (%)")
    final = 100 * np.mean([c.accuracy[-1] for runs in curves.values() for c in runs])
    accuracy.set_ylim(max(0, final - 9), min(100, final + 3))
    accuracy.legend(loc="lower right", frameon=False)
    draw_curves(share, {m: [c.right_importance for c in runs] for m, runs in curves.items()})
    share.axhline(50, color="black", linewidth=0.8, linestyle=":")
    share.annotate(
        "both halves count the same",
        (1, 50),
        (0, 3),
        ("axes fraction", "data"),
        "offset points",
        ha="right",
        fontsize=9,
    )
    share.set(title="Importance of the noisy right half", ylabel="share on validation images (%)")
    share.set_ylim(0, 60)
    share.legend(loc="upper right", bbox_to_anchor=(1, 0.84), frameon=False)
    draw_probes(probes, results)
    probes.set(
        title="What the right half's encoder learned", ylabel="linear probe, test accuracy (%)"
    )
    for axes in (accuracy, share, probes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
        axes.set_axisbelow(True)
    seeds = len(results["MCR"])
    figure.suptitle(
        f"Handwritten digits cut in two, the right half under noise: "
        f"mean and standard deviation over {seeds} seeds"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
