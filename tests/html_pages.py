"""What a test asks of a page of HTML."""

import posixpath
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

COUNTED = ("h1", "h2", "h3", "li", "table", "tr", "pre", "img")
FETCHED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "srcset"}


@dataclass
class Html(HTMLParser):
    """A page's anchors, links, what it fetches, and how many elements it has of a kind."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        self.counts[tag] += 1
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        # rel="prev" and the like are for a reader's keys, icons and style sheets are fetched
        if (target := values.get(FETCHED.get(tag, ""))) and values.get("rel") not in (
            *("prev", "next", "canonical"),
        ):
            self.fetched.append(target)


def parse(text: str) -> Html:
    page = Html()
    page.feed(text)
    return page


def article(text: str) -> str:
    """What the page itself says, without the site around it."""
    return text[text.index("<article") : text.index("</article>")]


def is_external(link: str) -> bool:
    return bool(urlsplit(link).scheme or urlsplit(link).netloc)


def broken(pages: dict[str, Html], site: Path) -> list[str]:
    """Links and files within the site that lead nowhere, as "page: link"."""
    found = []
    for name, page in pages.items():
        for link in (*page.links, *page.fetched):
            if is_external(link):
                continue
            path, anchor = unquote(urlsplit(link).path), unquote(urlsplit(link).fragment)
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
            target = name if not path else target
            leads = (site / target).is_file()
            if anchor and target in pages:
                leads = leads and anchor in pages[target].ids
            if not leads:
                found.append(f"{name}: {link}")
    return found
