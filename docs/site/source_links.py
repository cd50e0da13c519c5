"""Links of the pages that lead out of docs/, and links to folders.

Pages are written as they lie in the repository, so that they read on a host of repositories too. On
the site a file outside of docs/ that a page links to gets a page of its own with its text, under
source/, and an image is copied there; a link to a folder of docs/ leads to its README.md.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS, SOURCE = "docs/", "source/"
IN_NAV = ("CHANGELOG.md", "CONTRIBUTING.md")
IMAGES = (".png", ".svg", ".jpg")
FENCED = re.compile(r"(^```.*?^```[ ]*$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(?=[)\s])")


def site_path(path: str) -> str:
    """Where a file of the repository is on the site."""
    if (ROOT / path).is_dir():
        path = posixpath.join(path, "README.md")
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    return SOURCE + path + ("" if path.endswith((".md", *IMAGES)) else ".md")


def repository_path(page: str) -> str:
    """The file of the repository that a page of the site is made of."""
    return page.removeprefix(SOURCE) if page.startswith(SOURCE) else DOCS + page


def target_of(link: str, path: str) -> str | None:
    """The file of the repository that a link of `path` leads to."""
    if ":" in link:
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return target if (ROOT / target).exists() else None


def targets(path: str) -> set[str]:
    """The files outside of docs/ that a page links to."""
    text = "".join(FENCED.split((ROOT / path).read_text(encoding="utf-8"))[::2])
    found = {target_of(link[2], path) for link in LINK.finditer(text)}
    return {x for x in found if x and (ROOT / x).is_file() and not x.startswith(DOCS)}


def listing(path: str) -> str:
    """A page that shows a file."""
    try:
        language = get_lexer_for_filename(path).aliases[0]
    except ClassNotFound:
        language = "text"
    text = (ROOT / path).read_text(encoding="utf-8").rstrip("\n")
    return f"---\nsearch: {{ exclude: true }}\n---\n# `{path}`\n\n````{language}\n{text}\n````\n"


def source_file(path: str, config: MkDocsConfig) -> File:
    """The page of a file outside of docs/."""
    if path.endswith(IMAGES):
        return File.generated(config, site_path(path), abs_src_path=str(ROOT / path))
    is_page = path.endswith(".md")
    text = (ROOT / path).read_text(encoding="utf-8") if is_page else listing(path)
    inclusion = InclusionLevel.UNDEFINED if path in IN_NAV else InclusionLevel.NOT_IN_NAV
    return File.generated(config, site_path(path), content=text, inclusion=inclusion)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside of docs/ that is linked to, from these pages as well."""
    waiting = set(IN_NAV)
    for file in files.documentation_pages():
        waiting |= targets(DOCS + file.src_uri)
    done: set[str] = set()
    while waiting:
        path = waiting.pop()
        done.add(path)
        files.append(source_file(path, config))
        if path.endswith(".md"):
            waiting |= targets(path) - done
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where their files are on the site."""
    path = repository_path(page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)

    def on_site(link: re.Match[str]) -> str:
        target = target_of(link[2], path)
        if target is None:
            return link[0]
        return link[1] + posixpath.relpath(site_path(target), here or ".") + (link[3] or "")

    parts = FENCED.split(markdown)
    parts[::2] = [LINK.sub(on_site, part) for part in parts[::2]]
    return "".join(parts)
