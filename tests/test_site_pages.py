"""The pages of the site, before it is built: all listed, all names there, the code runs."""

import textwrap

import pytest
from programs import ROOT, run_python
from site_pages import described, listed, missing_modules, pages, program, unbound

import mcr_fast
from mcr_fast import functional, monitor, recipes, tune

# Pages whose ```python blocks are run one after the other, as a reader would.
RUN = (
    *("README.md", "docs/index.md", "docs/quickstart.md", "docs/how-it-works.md", "docs/faq.md"),
    *("docs/tuning.md", "docs/competition-methods.md"),
)
# What a page leaves to its reader: in front of its blocks, and behind them.
OF_READER = {
    "docs/tuning.md": (
        """import mcr_fast, torch
        def make_model(): return torch.nn.Linear(6, 6)
        def train(model, objective, epochs): assert isinstance(objective, mcr_fast.MCRObjective)
        def validation_accuracy(model): return float(torch.rand(()))""",
        """from mcr_fast import tune
        tuned = tune.tune(run, seeds=(0, 1), confirm=(2, 3))
        assert isinstance(tuned.weights, tune.Weights)""",
    ),
    "docs/competition-methods.md": (
        """import sys
        sys.path.insert(0, "tests")
        from rivals_steps import batch_of, model_of
        model, train_rows, validation = model_of(2), batch_of(2, 256), batch_of(2, 64, seed=1)""",
        """from examples.competition.trainer import Trained
        assert isinstance(trained, Trained)""",
    ),
}
# Pages whose blocks are parts of a program, and what they lack to be one.
LACKS = {
    "docs/data-parallel.md": "nn",
    "docs/distributed.md": "loader",
    "docs/monitor.md": "# ... train ...",
    "docs/recipes.md": "balancemm",
}


def test_pages_with_code_are_run_or_lack_something():
    others = (f"docs/{page}" for page in pages() if program(f"docs/{page}"))
    assert {"README.md", *others} == {*RUN, *LACKS}


@pytest.mark.parametrize("page", LACKS)
def test_what_parts_of_programs_lack(page):
    code, lacking = program(page), LACKS[page]
    assert lacking in (*unbound(code), *missing_modules(code)) or f"\n{lacking}\n" in code


def test_every_page_is_in_the_list_once():
    made = [page for page in listed() if page.startswith("source/")]  # of files outside of docs/
    assert sorted(listed()) == sorted((*pages(), *made))


def test_every_public_name_is_described():
    of_module = {"functional": functional, "recipes": recipes, "monitor": monitor, "tune": tune}
    names = {f"mcr_fast.{x}" for x in mcr_fast.__all__ if x not in (*of_module, "__version__")}
    for short, module in of_module.items():
        names |= {f"mcr_fast.{short}.{x}" for x in module.__all__}
    names.remove("mcr_fast.monitor.MCRMonitor")  # is mcr_fast.MCRMonitor
    assert names <= described()


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_code_runs(page):
    before, after = (textwrap.dedent(" " * 8 + x) for x in OF_READER.get(page, ("", "")))
    code = "\n".join((before, program(page), after))
    run_python("-c", code)


@pytest.mark.slow
def test_figures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    run_python("docs/figures/game.py", str(tmp_path))
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name for path in (ROOT / "docs/figures").glob("*.svg")}
    for name in drawn:
        assert (tmp_path / name).read_text(encoding="utf-8").count("<path") > 20
