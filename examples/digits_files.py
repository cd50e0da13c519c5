"""What the demo's files of results say about where and on what they were made."""

import sys
from pathlib import Path

# Names of machines and files of results are those of the benchmarks, which lie beside this folder.
sys.path.append(str(Path(__file__).resolve().parent.parent))
from bench import machine, results

WHERE = results.ENVIRONMENT  # the columns that every row has


def environment() -> dict[str, str]:
    """These columns; the commit is that of the first call, which is kept."""
    return machine.environment() | {"load": f"{machine.load():.1f}"}


def caption(where: dict[str, str], what: str, command: str) -> str:
    """The line under a table of a page."""
    state = " with uncommitted changes" if where["dirty"] == "yes" else ""
    return (
        f"{where['device']}, torch {where['torch']}, commit {where['commit']}{state}, "
        f"{where['date'][:10]}, {what}; written by `{command}`."
    )
