"""The words and the figure: who starves, and when that turned."""

import pytest
from monitored import NAMES

from mcr_fast import MCRMonitor
from mcr_fast.monitor._story import headline_of, summary_of, turns_of

BELOW = 0.02


def history_of(shares, accuracy=float("nan"), every=100):
    """Records with these importances of the audio."""
    kinds = ("divergence", "unimodal_accuracy", "grad_cosine")
    return [
        {
            "step": every * (at + 1),
            "importance/audio": share,
            "importance/image": 1 - share,
            **{f"{kind}/{name}": accuracy for kind in kinds for name in NAMES},
        }
        for at, share in enumerate(shares)
    ]


@pytest.mark.parametrize(
    ("shares", "turns"),
    [
        ([0.4, 0.3, 0.2], []),
        ([0.4, 0.01, 0.3, 0.01], []),  # single records are noise
        ([0.4, 0.01, 0.013], [(200, True)]),
        ([0.01, 0.01, 0.3], [(100, True)]),
        ([0.01, 0.01, 0.3, 0.3, 0.01, 0.01], [(100, True), (300, False), (500, True)]),
        ([0.01], [(100, True)]),
        ([float("nan")] * 3, []),
    ],
)
def test_turns(shares, turns):
    found = turns_of(history_of(shares), NAMES, BELOW)
    assert [(turn.step, turn.starves) for turn in found] == turns
    assert all(turn.modality == "audio" for turn in found)


def test_words():
    headline = headline_of(history_of([0.4, 0.01, 0.013]), NAMES, BELOW)
    assert headline == "audio starves since step 200 (importance 1.3 %)"
    headline = headline_of(history_of([0.4, 0.3]), NAMES, BELOW)
    assert headline == "No modality starves at step 200 (importance: image 70.0 %, audio 30.0 %)"
    text = summary_of(history_of([0.01, 0.01, 0.3, 0.3, 0.01, 0.01], 0.25), NAMES, BELOW)
    assert text == (
        "audio starves since step 500 (importance 1.0 %). audio starved from step 100 to 300. "
        "On its own audio is right in 25.0 % of the rows. "
        "The cosine of the task's and the regularizer's gradients of audio is +0.25."
    )
    assert "audio starves from the start" in summary_of(history_of([0.01, 0.01]), NAMES, BELOW)


def test_figure(tmp_path):
    pytest.importorskip("matplotlib")
    monitor = MCRMonitor(NAMES)
    monitor.history = history_of([0.4, 0.3, 0.01, 0.013, 0.012], 0.25)
    monitor.step = 500
    figure = monitor.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert len(figure.axes) == 4
    assert figure.get_suptitle() == monitor.summary().split(". ")[0]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["audio starves\nstep 300, 1.0 %"]
    monitor.history = history_of([0.4, 0.3])
    assert len(monitor.plot().axes) == 1


def test_figure_of_nothing():
    pytest.importorskip("matplotlib")
    assert MCRMonitor(NAMES).plot().get_suptitle() == "Nothing was seen yet"
