"""What a folder has to hold: looked for before any work, and said in one message."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

PAGE = "docs/paper-datasets.md"


def names_in(folder: Path) -> set[str]:
    """What is in a folder, in one look; nothing if there is none."""
    return set(os.listdir(folder)) if folder.is_dir() else set()


def missing_error(
    root: Path, layout: str, first: Path, counts: Mapping[str, tuple[int, int]] | None = None
) -> FileNotFoundError:
    """An error with the first thing that is missing, how many are, and what is expected where.

    Args:
        root: the folder that was given.
        layout: what has to be in it, line by line.
        first: the first path that is not there.
        counts: how many of how many are missing, by what they are.
    """
    lines = [f"{first} is missing."]
    for what, (missing, total) in (counts or {}).items():
        if missing:
            lines.append(f"{missing} of {total} {what} are missing.")
    lines.append(f"Expected in {root}:")
    lines += [f"    {line}" for line in layout.strip().splitlines()]
    lines.append(f"Where to get it and how to prepare it: {PAGE}")
    return FileNotFoundError("\n".join(lines))


def require(root: Path, layout: str, paths: Sequence[Path]) -> None:
    """Raise for the first of some paths that is not there."""
    for path in paths:
        if not path.exists():
            raise missing_error(root, layout, path)


def lines_of(path: Path) -> list[tuple[int, str]]:
    """A text file's lines that are not empty, each with its number in the file, from 1.

    A mark of the byte order is left out.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no text in UTF-8 ({error})") from error
    numbered = [(number, text) for number, line in enumerate(lines, 1) if (text := line.strip())]
    if not numbered:
        raise ValueError(f"{path} is empty")
    return numbered
