"""docs/competition-methods.md: a row for each strategy, with the passes that its step takes."""

from pathlib import Path

import pytest
import torch
from rivals_steps import batch_of, model_of

from examples.competition.rivals import STRATEGIES, find

PAGE = Path(__file__).resolve().parent.parent / "docs/competition-methods.md"
# MMCosine's fusion is not the module that counts its forwards.
COUNTED = ["joint", "unimodal", "multi-loss", "OGM", "OPM", "AGM", "MLB", "MSLR", "MILES"]
COUNTED += ["MMPareto", "D&R", "Remix", "SFC"]


def rows() -> dict[str, list[str]]:
    """The cells of the first table behind the name."""
    table = PAGE.read_text(encoding="utf-8").split("\n| name |")[1].split("\n\n")[0]
    lines = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


def test_every_strategy_has_its_row():
    assert list(rows()) == list(STRATEGIES)
    assert all(find(name) for name in STRATEGIES)  # and can be imported


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("name", COUNTED)
def test_passes_of_a_step(name, modalities, monkeypatch):
    model = model_of(modalities)
    counts = {"encoder": 0, "fusion": 0, "backward": 0}

    def count(what):
        counts[what] += 1

    model.encoders[1].register_forward_hook(lambda *_: count("encoder"))
    model.fusion.register_forward_hook(lambda *_: count("fusion"))
    for function in ("backward", "grad"):
        original = getattr(torch.autograd, function)

        def counted(*args, _original=original, **options):
            count("backward")
            return _original(*args, **options)

        monkeypatch.setattr(torch.autograd, function, counted)
    strategy = find(name)(model)
    optimizer = torch.optim.SGD(strategy.parameter_groups(0.1), lr=0.1)
    strategy.step(batch_of(modalities), optimizer)
    said = [int(number) for number in rows()[name][-1].split(" / ")]
    if name == "AGM":
        said[1] = 2**modalities - 1
    assert list(counts.values()) == said
