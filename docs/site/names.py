"""Public names in code type lead to their place in the API, as do pages that docstrings name."""

import posixpath
import re
from typing import Any

from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

import mcr_fast
from mcr_fast import functional

MODULES = ("functional", "recipes")
NAMES = {
    **{x: f"mcr_fast.{x}" for x in mcr_fast.__all__ if x[0] != "_" and x not in MODULES},
    **{f"functional.{x}": f"mcr_fast.functional.{x}" for x in functional.__all__},
}
NAMES |= {f"mcr_fast.{short}": full for short, full in NAMES.items()}
# Where nothing is to be done, and what is looked for.
PIECES = re.compile(
    r"(?P<left><(?P<tag>a|pre|h\d|autoref|nav)\b.*?</(?P=tag)>)"
    r"|<code>(?P<name>[\w.]+)</code>"
    r"|\b(?P<page>docs/[\w/-]+\.md)\b",
    re.DOTALL,
)


def on_page_content(content: str, page: Page, files: Files, **_: Any) -> str:
    """Make the links; autorefs finds where a name is described."""

    def linked(found: re.Match[str]) -> str:
        if found["name"] in NAMES:
            return f'<autoref identifier="{NAMES[found["name"]]}">{found[0]}</autoref>'
        if found["page"] and (file := files.get_file_from_path(found["page"][len("docs/") :])):
            url = posixpath.relpath(file.url, posixpath.dirname(page.url) or ".")
            return f'<a href="{url}">{found["page"]}</a>'
        return found[0]

    return PIECES.sub(linked, content)
