"""The site as it is built: strict, whole without a network, the same pages as in docs/."""

import re
import shutil
from pathlib import Path

import pytest
from html_pages import COUNTED, Html, article, broken, is_external, parse
from programs import ROOT
from site_pages import DOCS, NEEDED, build, built_site, pages

for needed in NEEDED:
    pytest.importorskip(needed, reason="make docs installs what the site is built with")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site() -> Path:
    return built_site()


@pytest.fixture(scope="module")
def texts(site) -> dict[str, str]:
    """Every page but the one for addresses that are not there, which knows no place of its own."""
    names = {path.relative_to(site).as_posix(): path for path in site.rglob("*.html")}
    return {
        name: path.read_text(encoding="utf-8") for name, path in names.items() if name != "404.html"
    }


@pytest.fixture(scope="module")
def html(texts) -> dict[str, Html]:
    return {name: parse(text) for name, text in texts.items()}


def built(page: str) -> str:
    """The name on the site of a page of docs/."""
    return re.sub(r"(README|index)\.md$", "index.md", page).removesuffix(".md") + ".html"


def test_every_page_is_there(html):
    assert {built(page) for page in pages()} <= set(html)


def test_links_files_and_anchors_resolve(html, site):
    assert not broken(html, site)


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.html").touch()
    page = parse('<a href="a.html#x">a</a><a href="no.html">b</a><img src="no.png"><p id="y">')
    assert broken({"a.html": page}, tmp_path) == ["a.html: a.html#x", "a.html: no.html"] + [
        "a.html: no.png"
    ]


def test_nothing_is_fetched_from_elsewhere(html, site):
    assert not [(name, x) for name, page in html.items() for x in page.fetched if is_external(x)]
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8"))


FORMULA = re.compile(r"\$\$.+?\$\$|(?<![\w$\\])\$[^$\n]*[^$\s]\$(?!\w)", re.DOTALL)


def formulas(page: str) -> int:
    """How many formulas a page of docs/ has."""
    text = (DOCS / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```|^ {4,}\S.*?$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    return len(FORMULA.findall(text))


def test_no_formula_is_left_unread(texts):
    assert not [name for name, text in texts.items() if 'class="arithmatex"' in article(text)]
    with_formulas = 0
    for page in pages():
        text = article(texts[built(page)])
        assert text.count("<math") == formulas(page), page
        prose = re.sub(r"<(pre|code|annotation)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert "\\" not in prose, page
        assert "$" not in prose, page
        with_formulas += formulas(page) > 0
    assert formulas("how-it-works.md") > 20
    assert with_formulas > 2


def test_public_names_lead_to_the_api(html):
    assert "api/losses.html#mcr_fast.MCRObjective" in html["how-it-works.html"].links
    assert "../training.html" in html["api/losses.html"].links  # which docstrings name


def test_docstrings_are_read_as_sections(texts):
    for name in (built(page) for page in pages() if page.startswith("api/")):
        text = article(texts[name])
        assert "<blockquote" not in text, f"{name}: an example is text"
        assert 'class="example"' not in text, f"{name}: an example is no section"
        assert not re.search(r"<code>\w+,</code>", text), f"{name}: names of a group are one name"
    losses = article(texts["api/losses.html"])
    assert losses.count("Examples:") >= 4
    assert "Parameters:" in losses
    for option in ("contrastive_weight", "exchange"):
        assert f"<b><code>{option}</code></b>" in losses


@pytest.mark.parametrize("page", [page for page in pages() if not page.startswith("api/")])
def test_reads_as_on_a_host_of_repositories(page, texts):
    """As many headings, items, tables and blocks as CommonMark has, which is what hosts read."""
    from markdown_it import MarkdownIt

    text = (DOCS / page).read_text(encoding="utf-8")
    there = parse(MarkdownIt("gfm-like", {"linkify": False}).render(text))
    here = parse(article(texts[built(page)]))
    assert {x: here.counts[x] for x in COUNTED} == {x: there.counts[x] for x in COUNTED}


def test_an_unlisted_page_fails_the_build(tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("docs", "build", ".git", ".venv"):
            (copy / path.name).symlink_to(path)
    shutil.copytree(DOCS, copy / "docs")
    (copy / "docs/forgotten.md").write_text("# Forgotten\n", encoding="utf-8")
    done = build(copy, tmp_path / "site")
    assert done.returncode != 0
    assert "forgotten.md" in done.stderr
