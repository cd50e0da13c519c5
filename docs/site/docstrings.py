"""Docstrings as griffe reads them: what help() shows well, its Google style lacks.

`Example:` is a section of examples, and `a, b: text` in a section describes both names.
"""

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
SECTION = re.compile(r"^(?:Args|Attributes):\n((?:[ ]{4}.*\n?|\n)+)", re.MULTILINE)
GROUP = re.compile(r"^    (\w+)((?:, \w+)+): (.*\n(?:[ ]{8}.*\n)*)", re.MULTILINE)


def ungrouped(group: re.Match[str]) -> str:
    """The first name with the text, the others with a word that leads there."""
    others = group[2].split(", ")[1:]
    lines = [f"    {group[1]}: {group[3]}", *(f"    {x}: see `{group[1]}`.\n" for x in others)]
    return "".join(lines)


def readable(text: str) -> str:
    """A docstring in the form that griffe takes apart."""
    text = EXAMPLE.sub("Examples:", text)
    return SECTION.sub(lambda section: GROUP.sub(ungrouped, section[0] + "\n"), text)


class Docstrings(Extension):
    """Changes docstrings as they are collected."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)
