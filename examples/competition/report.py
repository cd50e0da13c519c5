"""Writes the tables, sentences and figures of the pages from the files of results."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.machine import ROOT
from bench.table import fill_marks

from . import claims, figures, protocol, sentences, tables, timing
from .chosen import Effort
from .data import FAMILIES
from .outcomes import Outcomes, load
from .records import RESULTS

PAGES = (ROOT / "docs" / "competition.md", ROOT / "docs" / "when-does-it-help.md")
FIGURES = ROOT / "docs" / "figures" / "competition"
SHOWN = ("speed", "hidden", "figure1", "synergy", "digits")  # families with a part of their own


def contents(outcomes: Outcomes, folder: Path) -> dict[str, Callable[[], str]]:
    """What stands between the marks of the pages, by name."""
    found: dict[str, Callable[[], str]] = {
        "state": partial(protocol.state, outcomes),
        "goals": partial(sentences.goals, outcomes),
        "claims": partial(claims.table, outcomes),
        "primary": partial(sentences.primary, outcomes),
        "better": partial(sentences.better_than_mcr, outcomes),
        "null_sentences": partial(sentences.null_results, outcomes),
        "expectations": partial(sentences.expectations, outcomes),
        "signs": partial(sentences.signs, outcomes),
        "ranks": partial(tables.mean_ranks, outcomes),
        "ablations": partial(tables.ablations, outcomes),
        "choices": partial(tables.choices, outcomes),
        "protocol": partial(protocol.text, outcomes),
        "time": partial(timing.table, folder),
        "null": partial(tables.accuracy, outcomes, sentences.NULL),
        "null_differences": partial(tables.differences, outcomes, sentences.NULL),
        "last_epoch": partial(tables.last_epoch, outcomes, FAMILIES),
    }
    found["ranks_figure"] = partial(image, "ranks", "mean ranks", bool(outcomes.ranks))
    gains, title = bool(figures.sign_points(outcomes)), "MCR's gain against the sign"
    found["gains_figure"] = partial(image, "gains", title, gains)
    for family in SHOWN:
        title = FAMILIES[family].title if family in FAMILIES else family
        there = figures.drawn(outcomes, family)
        found[f"{family}_figure"] = partial(image, family, title, there)
        found[family] = partial(tables.accuracy, outcomes, [family])
        found[f"{family}_differences"] = partial(tables.differences, outcomes, [family])
        found[f"{family}_lost"] = partial(tables.lost_sensors, outcomes, family)
    return found


def image(name: str, title: str, there: bool) -> str:
    """A figure in a page, if it was drawn."""
    return f"![{title}](figures/{FIGURES.name}/{name}.png)" if there else tables.NOTHING


def write(outcomes: Outcomes, folder: Path, pages: tuple[Path, ...], images: Path) -> int:
    """Fill the pages' marks and draw the figures; returns how many marks there are."""
    figures.draw_all(outcomes, images)
    found = contents(outcomes, folder)
    return sum(fill_marks(page, found) for page in pages)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=RESULTS, help="another folder of results")
    parser.add_argument("--quick", action="store_true", help="results of a quick run")
    parser.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """The command `report`."""
    outcomes = load(options.results, Effort.quick() if options.quick else Effort())
    count = write(outcomes, options.results, PAGES, FIGURES)
    print(f"{count} parts of {', '.join(page.name for page in PAGES)}; figures in {FIGURES}")
    return 0
