"""What MCRMonitor refuses, and in which words."""

import pytest
from monitored import NAMES, Game

from mcr_fast import MCRMonitor


@pytest.mark.parametrize(
    ("given", "options", "error", "text"),
    [
        ("image", {}, TypeError, "modalities must be a list of names or their number"),
        (1, {}, ValueError, "modalities must be at least 2, got 1"),
        (["a", "a"], {}, ValueError, "modalities must be at least 2 different names"),
        (["a", 3], {}, TypeError, "modalities must be names"),
        (2, {"every": 0}, ValueError, "every must be at least 1"),
        (2, {"window": 2.5}, TypeError, "window must be int"),
        (2, {"average": "mean"}, ValueError, "average must be"),
        (2, {"starves_below": 0}, ValueError, "starves_below must be finite and above 0"),
        (
            2,
            {"process_group": "all"},
            ValueError,
            "process_group must be one of 'world', got 'all'",
        ),
        (2, {"log": [3]}, TypeError, "log must hold callables"),
    ],
)
def test_bad_options(given, options, error, text):
    with pytest.raises(error, match=text):
        MCRMonitor(given, **options)


def test_bad_steps():
    game, monitor = Game(), MCRMonitor(NAMES)
    latents, out, alone = game.forward()
    for given, kwargs, error, text in (
        (out.loss, {}, TypeError, "out must be what MCRLoss or MCRObjective returned"),
        (out, {"unimodal_logits": alone}, ValueError, "labels must be given with unimodal_logits"),
        (out, {"labels": game.labels.float()}, TypeError, "labels must be integers or booleans"),
        (out, {"labels": game.labels[1:]}, ValueError, r"labels must have shape \[9\] or \[9, 4\]"),
        (out, {"labels": game.labels, "unimodal_logits": alone[:1]}, ValueError, "must hold 2"),
        (out, {"latents": latents[:1]}, ValueError, "latents must hold 2 modalities, got 1"),
        (out, {"candidates": 0}, ValueError, "candidates must be at least 1"),
    ):
        with pytest.raises(error, match=text):
            monitor.update(given, **kwargs)
    with pytest.raises(ValueError, match="modalities must name the 2 modalities of out, got 3"):
        MCRMonitor(3).update(out)
    with pytest.raises(ValueError, match="span must be"):
        monitor.read("week")
