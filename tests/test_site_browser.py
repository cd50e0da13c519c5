"""The site in headless Chromium, as wide as a phone and as a desk's screen."""

from pathlib import Path

import pytest
from browser import CHROMIUM, dom, visit
from site_pages import NEEDED, built_site

for needed in NEEDED:
    pytest.importorskip(needed, reason="make docs installs what the site is built with")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here"),
]

WIDTHS = (390, 1280)
GOOD = "<!doctype html><title>t</title><article><h1>One</h1><p>x</article>"
BAD = {
    "image.html": GOOD + '<img src="none.png">',
    "script.html": GOOD + "<script>undefined_name()</script>",
    "wide.html": GOOD + '<div style="width:3000px">x</div>',
    "good.html": GOOD,
}


def test_pages_render():
    site = built_site()
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    found, errors = visit(site, pages, *WIDTHS)
    assert not errors
    assert set(found) == set(pages)
    for page, shown in found.items():
        assert len(shown["h1"]) == 1, page
        assert shown["height"] > 50, page
        assert all(natural > 0 for _, natural in shown["images"]), (page, shown["images"])
        assert set(shown["overflow"].values()) == {0}, (page, shown["overflow"])
    assert found["how-it-works.html"]["formulas"] > 20


@pytest.mark.parametrize(
    ("query", "page"), [("greedy", "gradient-routing.html"), ("xent", "math/nt_xent.html")]
)
def test_search_works_from_a_disk(query, page):
    shown = dom(f"{(built_site() / 'index.html').as_uri()}?q={query}")
    assert f"/{page}" in shown[shown.index("md-search-result__list") :]


def test_what_is_wrong_is_noticed(tmp_path: Path):
    for name, text in BAD.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    found, errors = visit(tmp_path, list(BAD), *WIDTHS)
    assert found["image.html"]["images"] == [["none.png", 0]]
    assert found["wide.html"]["overflow"]["1280"] > 1000
    assert found["good.html"]["overflow"] == {"390": 0, "1280": 0}
    assert any("undefined_name" in error for error in errors)
    assert any("/none.png" in error for error in errors)
    assert not [error for error in errors if "good.html" in error]
