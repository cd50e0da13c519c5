"""Writes the tables, sentences and figures of the pages from the files of results."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.machine import ROOT
from bench.table import fill_marks

from . import figures, jobs, sentences, tables, timing, tuning
from .data import FAMILIES
from .outcomes import Outcomes, load
from .records import RESULTS
from .training import HIDDEN, LATENT

PAGES = (ROOT / "docs" / "competition.md", ROOT / "docs" / "when-does-it-help.md")
FIGURES = ROOT / "docs" / "figures" / "competition"


def contents(outcomes: Outcomes, folder: Path) -> dict[str, Callable[[], str]]:
    """What stands between the marks of the pages, by name."""
    found: dict[str, Callable[[], str]] = {
        "goals": partial(sentences.goals, outcomes),
        "claims": partial(sentences.claims, outcomes),
        "better": partial(sentences.better_than_mcr, outcomes),
        "null_sentences": partial(sentences.null_results, outcomes),
        "signs": partial(sentences.signs, outcomes),
        "ranks": partial(tables.mean_ranks, outcomes),
        "ablations": partial(tables.ablations, outcomes),
        "choices": partial(tables.choices, outcomes),
        "protocol": partial(protocol, outcomes),
        "time": partial(timing.table, folder),
        "null": partial(tables.accuracy, outcomes, sentences.NULL),
        "null_differences": partial(tables.differences, outcomes, sentences.NULL),
        "last_epoch": partial(tables.last_epoch, outcomes, FAMILIES),
    }
    found["ranks_figure"] = partial(image, "ranks", "mean ranks", bool(outcomes.ranks()))
    for family in figures.SWEPT:
        title, there = FAMILIES[family].title, bool(outcomes.places(family))
        found[f"{family}_figure"] = partial(image, family, title, there)
        found[family] = partial(tables.accuracy, outcomes, [family])
        found[f"{family}_differences"] = partial(tables.differences, outcomes, [family])
        found[f"{family}_lost"] = partial(tables.lost_sensors, outcomes, family)
    return found


def image(name: str, title: str, there: bool) -> str:
    """A figure in a page, if it was drawn."""
    return f"![{title}](figures/{FIGURES.name}/{name}.png)" if there else tables.NOTHING


def protocol(outcomes: Outcomes) -> str:
    """How much of everything, as the code has it, and how much of it there are results of."""
    effort = jobs.Effort()
    most = max(map(len, tuning.TRIES.values()))
    fewer = {name: len(tries) for name, tries in tuning.TRIES.items() if len(tries) < most}
    exceptions = ", ".join(f"{tables.shown(name)} {count}" for name, count in fewer.items())
    settings = sum(len(family.values) for family in FAMILIES.values())
    return (
        f"{settings} settings, {effort.seeds} seeds each, {effort.epochs} epochs of 8 steps. "
        f"Encoders have two hidden layers of {HIDDEN}, latents {LATENT} numbers. "
        f"{most} tries a method (fewer, as there is no more to choose: {exceptions}), each in "
        f"every setting of a family with a seed of its own, or with {tuning.SEEDS_OF_ONE} seeds "
        f"where there is one setting; seeds from {tuning.SEEDS[0]} on, results have 0 to "
        f"{effort.seeds - 1}.{missing(outcomes)}"
    )


def missing(outcomes: Outcomes) -> str:
    """What there are no results of yet, if anything."""
    methods = {name for family in FAMILIES for name in outcomes.methods(family)}
    every = jobs.available_methods()
    there, settings = len(outcomes.all_places()), sum(len(f.values) for f in FAMILIES.values())
    if len(methods) == len(every) and there == settings:
        return ""
    return (
        f" **Not complete**: these are results of {len(methods)} of {len(every)} methods in "
        f"{there} of {settings} settings."
    )


def write(folder: Path, pages: tuple[Path, ...], images: Path) -> int:
    """Fill the pages' marks and draw the figures; returns how many marks there are."""
    outcomes = load(folder)
    figures.draw_all(outcomes, images)
    found = contents(outcomes, folder)
    return sum(fill_marks(page, found) for page in pages)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=RESULTS, help="another folder of results")
    parser.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """The command `report`."""
    count = write(options.results, PAGES, FIGURES)
    print(f"{count} parts of {', '.join(page.name for page in PAGES)}; figures in {FIGURES}")
    return 0
