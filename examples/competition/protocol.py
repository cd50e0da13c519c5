"""How the experiments are made, in the code's own figures, and what there are results of."""

from . import jobs, run, tables, tuning
from .chosen import Effort, available_methods
from .data import FAMILIES
from .outcomes import Outcomes
from .training import HIDDEN, LATENT

DEMO = "[training.md](training.md#on-real-data-digits-seen-and-heard)"


def text(outcomes: Outcomes) -> str:
    """How much of everything, and how much of it there are results of."""
    effort = Effort()
    settings = sum(len(family.values) for family in FAMILIES.values())
    more = ", ".join(map(tables.shown, effort.more_methods))
    families = " and ".join(FAMILIES[family].title for family in effort.more_families)
    return (
        f"{settings} settings, {effort.seeds} seeds each, and {effort.more_seeds} of {more} in "
        f"{families}; {effort.epochs} epochs of 8 steps. Encoders have two hidden layers of "
        f"{HIDDEN}, latents {LATENT} numbers. {tries()} Each try is trained in "
        f"{effort.tuning_places} settings of a family, from the first to the last, each with a "
        f"seed of its own (or with as many seeds, where there is one setting); these seeds are "
        f"{tuning.SEEDS[0]} and above. {cost(effort)}{missing(outcomes)}"
    )


def tries() -> str:
    """How many each method has, and of what."""
    counts = {name: tuning.number_of_tries(name) for name in tuning.TRIES}
    most = max(counts.values())
    fewer = [f"{tables.shown(name)} {count}" for name, count in counts.items() if count < most]
    only = ", ".join(map(tables.shown, tuning.ONLY_RATES))
    heirs = ", ".join(f"{name} (`{option}`)" for name, option in tuning.HEIR.items())
    rates = ", ".join(f"{rate:g}" for rate in tuning.RATES)
    wide = tuning.MORE_RATES
    between = ", ".join(
        f"{tables.shown(name)} ({len(found)} and {len(tuning.TRIES[name]) - 1})"
        for name, found in tuning.OTHER_RATES.items()
        if name not in tuning.ONLY_RATES
    )
    return (
        f"{most} tries a method{f' (fewer: {chr(44).join(fewer)})' if fewer else ''}: learning "
        f"rates {rates} with the starting options, then four other options at the best of these. "
        f"Rates only, {len(wide)} from {min(wide):g} to {max(wide):g}: {only}. "
        f"More rates and fewer options: {between}. "
        f"The weight of the unimodal losses is multi-loss's choice, and taken over by {heirs}."
    )


def cost(effort: Effort) -> str:
    """Trainings of a whole run, and of one with a choice for each setting."""
    methods = available_methods()
    counts = jobs.planned(jobs.EXPERIMENTS, FAMILIES, methods, effort)
    total = sum(counts.values())
    tuned = sum(len(effort.places(family)) for family in FAMILIES if not FAMILIES[family].tuned_on)
    settings = sum(len(f.values) for f in FAMILIES.values() if not f.tuned_on)
    each = counts["tuning"] // tuned * settings * effort.tuning_places
    hours = total * run.SECONDS / 2 / 60
    return (
        f"In all {total:,} trainings, {counts['tuning']:,} of them tries: about {hours:.0f} "
        f"minutes on two idle cores at {run.SECONDS} s. One choice for each setting instead of "
        f"each family would take {each:,} tries, which is why there is one a family."
    )


def missing(outcomes: Outcomes) -> str:
    """What there are no results of yet, if anything."""
    if outcomes.complete():
        return ""
    methods = {name for family in FAMILIES for name in outcomes.methods(family)}
    settings = sum(len(family.values) for family in FAMILIES.values())
    if not methods:
        return " **Nothing is measured yet.**"
    return (
        f" **Not complete**: there are results of {len(methods)} of {len(available_methods())} "
        f"methods in {len(outcomes.all_places())} of {settings} settings, not all of their seeds."
    )


def state(outcomes: Outcomes) -> str:
    """For the top of a page: whether the sweeps have been run in full."""
    if outcomes.complete():
        return "Every method was run in every setting; what follows from it is generated."
    return (
        "**The sweeps of this page have not been run in full**: a table without results says so, "
        f"and what is not generated here is an expectation. The demo has figures: {DEMO}."
    )
