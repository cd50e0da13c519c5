"""What README.md shows and promises."""

import re

import pytest
import torch
from readme import README, python_blocks, run_example
from torch import nn

TEXT = README.read_text(encoding="utf-8")
MOST_WORDS = 900  # two minutes, with its tables


@pytest.mark.parametrize("index", range(len(python_blocks())))
def test_code_runs_as_it_stands(index):
    exec(compile(python_blocks()[index], str(README), "exec"), {"__name__": "readme"})


def test_example_is_algorithm_1():
    """Task loss, unimodal losses and regularizer: every part of the model gets its gradient."""
    names = run_example()
    batch = (torch.randn(64, 32), torch.randn(64, 6), torch.randint(8, (64,)))
    torch.manual_seed(1)
    loss = names["training_loss"](*batch)
    latents = [f(x) for f, x in zip(names["encoders"], batch[:2], strict=True)]
    torch.manual_seed(1)
    out = names["objective"].loss(latents, batch[2], fusion=names["fusion"])
    losses = [nn.functional.cross_entropy(out.logits, batch[2]), out.loss]
    for head, z in zip(names["heads"], latents, strict=True):
        losses.append(3 * nn.functional.cross_entropy(head(z), batch[2]))
    torch.testing.assert_close(loss, sum(losses))
    modules = (names["encoders"], names["heads"], names["fusion"])
    for parameter in (p for module in modules for p in module.parameters()):
        assert parameter.grad.abs().sum() > 0, "the example calls backward"


def test_it_is_read_in_two_minutes():
    assert len(TEXT.split()) <= MOST_WORDS


def test_one_installs_before_one_uses():
    headings = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    assert headings[:2] == ["Install", "Use"]


def test_words_of_the_demo_come_before_its_table():
    before = TEXT[: TEXT.index("<!-- bench:begin demo -->")]
    for word in ("joint", "multi-loss", "ensemble", "MCR", "L_MIPD", "L_Con", "importance", "lost"):
        assert f"**{word}**" in before


def test_tables_are_generated():
    outside = re.sub(r"<!-- bench:begin.*?<!-- bench:end -->", "", TEXT, flags=re.DOTALL)
    assert not re.search(r"^\|", outside, re.MULTILINE)
