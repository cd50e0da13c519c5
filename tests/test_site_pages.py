"""The pages of the site, before it is built: all listed, all names there, the code runs."""

import pytest
from programs import ROOT, run_python
from site_pages import described, listed, pages, program

import mcr_fast
from mcr_fast import functional, monitor, recipes, tune

# Pages whose ```python blocks are run one after the other, as a reader would.
RUN = ("README.md", "docs/index.md", "docs/quickstart.md", "docs/how-it-works.md", "docs/faq.md")


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
    code = program(page)
    assert "import mcr_fast" in code or "from mcr_fast" in code
    run_python("-c", code)


@pytest.mark.slow
def test_figures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    run_python("docs/figures/game.py", str(tmp_path))
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name for path in (ROOT / "docs/figures").glob("*.svg")}
    for name in drawn:
        assert (tmp_path / name).read_text(encoding="utf-8").count("<path") > 20
