"""Where the pages' links lead, without a network.

Files and anchors of every Markdown page in the repository, anchors as hosts of repositories make
them. Links to other sites are counted alone. tests/test_site.py reads the pages as the site has
them.
"""

from __future__ import annotations

import html
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent


def pages() -> list[Path]:
    """The Markdown files that git knows, or would add."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.splitlines()]


def slug(heading: str) -> str:
    """The anchor of a heading: its words in small letters, joined by hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@cache
def read(page: Path) -> tuple[frozenset[str], tuple[str, ...]]:
    """The anchors of a page, and what it links to."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(page.read_text(encoding="utf-8"))
    anchors: set[str] = set()
    links = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if before is not None and before.type == "heading_open":
            words = "".join(x.content for x in token.children or () if x.type != "image")
            name, count = slug(words), 0
            while name in anchors:
                count += 1
                name = f"{slug(words)}-{count}"
            anchors.add(name)
        for part in (token, *(token.children or ())):
            links += [str(part.attrs[x]) for x in ("href", "src") if x in part.attrs]
            if part.type.startswith("html"):
                anchors |= set(re.findall(r'\b(?:id|name)="([^"]+)"', part.content))
                found = re.findall(r'\b(?:href|src|srcset)="([^"]+)"', part.content)
                links += [html.unescape(link) for link in found]
    return frozenset(anchors), tuple(links)


def why_broken(page: Path, link: str) -> str | None:
    """What is wrong with a link within the repository, None if nothing is."""
    parts = urlsplit(link)
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.exists():
        return "no such file"
    if target != ROOT and ROOT not in target.parents:
        return "outside of the repository"
    # a theme's mark on an image's address is no anchor
    if parts.fragment and target.suffix == ".md" and unquote(parts.fragment) not in read(target)[0]:
        return "no such heading"
    return None


def main() -> int:
    """Print what is broken and how much there is; 1 if anything is."""
    found, within, outside = [], 0, 0
    for page in pages():
        for link in read(page)[1]:
            if urlsplit(link).scheme or urlsplit(link).netloc:
                outside += 1
                continue
            within += 1
            if reason := why_broken(page, link):
                found.append(f"{page.relative_to(ROOT)}: {link}: {reason}")
    print("\n".join(found) + "\n" * bool(found), end="")
    print(f"{len(pages())} pages, {within} links within, {len(found)} broken; {outside} elsewhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
