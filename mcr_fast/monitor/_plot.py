"""The figure: importance over time with its turning points, and what explains it."""

from collections.abc import Sequence
from typing import Any

from mcr_fast.monitor._story import Record, headline_of, percent, turns_of

# Distinct for all kinds of colour vision, in this order.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Panels under the importance, each shown if the history has a number for it: name of the means,
# title, label of the axis, factor.
PANELS = (
    ("divergence", "How far the prediction moves without it", "divergence (nats)", 1.0),
    ("unimodal_accuracy", "What each tells on its own", "unimodal accuracy (%)", 100.0),
    ("grad_cosine", "Regularizer against task", "cosine of their gradients", 1.0),
)


def figure_of(history: Sequence[Record], modalities: Sequence[str], below: float) -> Any:
    """A matplotlib figure, which no window and no pyplot knows of."""
    from matplotlib.figure import Figure

    shown = [panel for panel in PANELS if _has(history, modalities, panel[0])]
    heights = (2.0, *(1.2 for _ in shown))
    figure = Figure(figsize=(8.5, 2.0 + 1.7 * sum(heights)), layout="constrained")
    first, *others = figure.subplots(
        len(heights), sharex=True, height_ratios=heights, squeeze=False
    )[:, 0]
    _draw(first, history, modalities, "importance", 100.0)
    _mark_turns(first, history, modalities, below)
    first.set(ylabel="importance (%)", ylim=(0, 100))
    fair = 100 / len(modalities)
    first.axhline(fair, color="#777777", linewidth=0.8, linestyle=":")
    first.axhspan(0, 100 * below, color="#c1272d", alpha=0.12, linewidth=0)
    first.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    for axes, (name, title, label, factor) in zip(others, shown, strict=True):
        _draw(axes, history, modalities, name, factor)
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_ylabel(label, fontsize=9)
        if name == "grad_cosine":
            axes.set_ylim(-1, 1)
            axes.axhline(0, color="#777777", linewidth=0.8, linestyle=":")
        else:
            axes.set_ylim(bottom=0)
    for axes in (first, *others):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
        for turn in turns_of(history, modalities, below):
            axes.axvline(turn.step, color="#c1272d" if turn.starves else "#2c7a2c", lw=0.9, ls="--")
    (others or [first])[-1].set_xlabel("step")
    figure.suptitle(headline_of(history, modalities, below), fontsize=12, wrap=True)
    return figure


def _has(history: Sequence[Record], modalities: Sequence[str], name: str) -> bool:
    values = (record[f"{name}/{modality}"] for record in history for modality in modalities)
    return any(value == value for value in values)  # NaN is not itself


def _draw(
    axes: Any, history: Sequence[Record], modalities: Sequence[str], name: str, factor: float
) -> None:
    steps = [record["step"] for record in history]
    for m, modality in enumerate(modalities):
        values = [factor * record[f"{name}/{modality}"] for record in history]
        color, marker = COLORS[m % len(COLORS)], "." if len(steps) < 30 else None
        axes.plot(steps, values, color=color, marker=marker, linewidth=1.6, label=modality)


def _mark_turns(
    axes: Any, history: Sequence[Record], modalities: Sequence[str], below: float
) -> None:
    """Say at each turning point what turned; texts of neighbours stand one above the other."""
    turns = turns_of(history, modalities, below)
    for at, turn in enumerate(turns):
        share = history[turn.record][f"importance/{turn.modality}"]
        what = "starves" if turn.starves else "recovers"
        color = COLORS[list(modalities).index(turn.modality) % len(COLORS)]
        late = turn.record > len(history) / 2
        axes.annotate(
            f"{turn.modality} {what}\nstep {turn.step}, {percent(share)}",
            xy=(turn.step, 100 * share),
            xytext=(-10 if late else 10, 22 + 30 * (at % 3)),
            textcoords="offset points",
            ha="right" if late else "left",
            color=color,
            fontsize=9,
            arrowprops={"arrowstyle": "->", "color": color},
        )
