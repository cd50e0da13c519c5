"""The pages as they lie in docs/, and the site's list of them."""

import re

from programs import ROOT

DOCS = ROOT / "docs"
LISTED = re.compile(r"(\S+\.md)$", re.MULTILINE)  # in mkdocs.yml
# ```python is run; ```py shows a part of something.
RUN = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def pages() -> list[str]:
    return sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def listed() -> list[str]:
    return LISTED.findall((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def described() -> set[str]:
    """The names that a page of the API has."""
    found: list[str] = []
    for path in DOCS.glob("api/*.md"):
        found += re.findall(r"^::: (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == len(set(found)), "a name has one place"
    return set(found)


def program(page: str) -> str:
    """The blocks of a page that run, one after the other."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return "\n".join(block[1] for block in RUN.finditer(text))
