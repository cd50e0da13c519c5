"""The tables of the pages, in Markdown."""

from collections.abc import Iterable, Sequence

from tabulate import tabulate

from . import tuning
from .data import FAMILIES
from .intervals import BySeed, mean, paired
from .jobs import ABLATED, ABLATIONS, AS_CHOSEN
from .outcomes import Outcomes, Place, origin, seeds_in_words
from .rivals import find
from .tuning import text_of

NAMES = {"unimodal": "ensemble of unimodal models", "frozen": "frozen unimodal encoders"}
NOTHING = "Not measured yet."


def shown(method: str) -> str:
    return NAMES.get(method, method)


def setting(place: Place) -> str:
    """A setting in words."""
    family = FAMILIES[place[0]]
    if len(family.values) == 1:
        return family.title
    return f"{family.axis} = {place[1]:g}"


def percent(figures: BySeed, seeds: Iterable[int] | None = None) -> str:
    """The mean, over these seeds only."""
    found = figures if seeds is None else {s: figures[s] for s in seeds if s in figures}
    return f"{mean(found):.1f}" if found else ""


def markdown(lines: Sequence[Sequence[str]], header: Sequence[str], words: int = 1) -> str:
    """A table whose first columns are words, the others figures."""
    align = ["left"] * words + ["right"] * (len(header) - words)
    return tabulate(lines, header, tablefmt="github", disable_numparse=True, colalign=align)


def methods_of(outcomes: Outcomes, places: Iterable[Place], without: str = "") -> list[str]:
    """Those with rows in any of the settings."""
    found = dict.fromkeys(name for place in places for name in outcomes.methods(place[0]))
    return [name for name in found if name != without]


def means(outcomes: Outcomes, families: Iterable[str], column: str, title: str) -> str:
    """Mean of a column over the seeds that all methods have in all these settings."""
    places = [place for family in families for place in outcomes.places(family)]
    seeds = outcomes.common_seeds(places)
    if not seeds:
        return NOTHING
    lines = []
    if column == "test":
        alone = (percent(outcomes.better_alone(p), seeds) for p in places)
        lines.append(["better modality alone", *alone])
    for name in methods_of(outcomes, places):
        cells = (percent(outcomes.figures(p, name, column), seeds) for p in places)
        lines.append([shown(name), *cells])
    used = [
        row
        for key, row in outcomes.rows.items()
        if key[0] in {place[0] for place in places} and key[-1] in seeds
    ]
    return f"{markdown(lines, [title, *map(setting, places)])}\n\n{origin(used)}"


def accuracy(outcomes: Outcomes, families: Iterable[str]) -> str:
    """Mean test accuracy of every method, and the better modality alone."""
    return means(outcomes, families, "test", "test accuracy, %")


def last_epoch(outcomes: Outcomes, families: Iterable[str]) -> str:
    """Test accuracy after the last epoch, which no validation has chosen."""
    return means(outcomes, families, "test_last", "after the last epoch, %")


def differences(outcomes: Outcomes, families: Iterable[str]) -> str:
    """MCR against every method: points and 95 % intervals paired by seed."""
    places = [place for family in families for place in outcomes.places(family)]
    methods = methods_of(outcomes, places, without="MCR")
    if not methods or not any("MCR" in outcomes.methods(place[0]) for place in places):
        return NOTHING
    lines = []
    for name in methods:
        found = [outcomes.difference(p, "MCR", name) for p in places]
        seeds = sorted({x.seeds for x in found if x.measured})
        lines.append([shown(name), *map(str, found), " or ".join(map(str, seeds))])
    return markdown(lines, ["MCR minus ..., points", *map(setting, places), "seeds"])


def lost_sensors(outcomes: Outcomes, family: str) -> str:
    """Accuracy with one modality's latents at their training mean; MCR's minus it in brackets."""
    places = outcomes.places(family)
    seeds = outcomes.common_seeds(places)
    if not seeds:
        return NOTHING
    names = FAMILIES[family].modalities
    header = ["test accuracy, % (MCR minus it)"]
    header += [f"{setting(p)}: {name} lost" for p in places for name in names]
    lines = []
    for method in outcomes.methods(family):
        cells = []
        for place in places:
            for column in ("without_0", "without_1"):
                text = percent(outcomes.figures(place, method, column), seeds)
                found = outcomes.difference(place, "MCR", method, column)
                shows = method != "MCR" and found.measured
                cells.append(f"{text} ({found})" if shows else text)
        lines.append([shown(method), *cells])
    accuracies = f"Accuracies over {seeds_in_words(seeds)}, differences over all that both have."
    return f"{markdown(lines, header)}\n\n{accuracies}"


def mean_ranks(outcomes: Outcomes) -> str:
    """Over all settings and seeds, and how often a method was not yet at work."""
    found = outcomes.ranks
    if not found:
        return NOTHING
    lines = []
    for name, rank in sorted(found.items(), key=lambda item: item[1].mean):
        text = shown(name)
        cells = [f"**{text}**" if rank.top else text, f"{rank.mean:.1f}"]
        cells += [f"{rank.low:.1f} to {rank.high:.1f}", not_at_work(outcomes, name)]
        lines.append([*cells, find(name).published])
    header = ["", "mean rank", "95 % interval", "not at work, %", "published"]
    align = ("left", "right", "right", "right", "left")
    table = tabulate(lines, header, tablefmt="github", disable_numparse=True, colalign=align)
    return (
        f"{table}\n\nRanks 1 to {len(found)}, over {len(outcomes.all_places())} settings. Bold: "
        "the top group, methods whose distance to the lowest mean rank has an interval that holds "
        "0. Intervals by bootstrap over seeds. Not at work: trainings whose best validation epoch "
        "comes before the first one in which the method does something of its own."
    )


def not_at_work(outcomes: Outcomes, method: str) -> str:
    """Share of a method's trainings whose best epoch lies in its warm-up, percent."""
    found = [
        float(row["best_epoch"]) < float(row["first_epoch"])
        for key, row in outcomes.rows.items()
        if key[2] == method and not key[3] and row["first_epoch"]
    ]
    return f"{100 * sum(found) / len(found):.0f}" if found else ""


def ablations(outcomes: Outcomes) -> str:
    """Every variant of MCR against the chosen one."""
    places = [p for p in ABLATED if any(k[:2] == ("ablations", p) for k in outcomes.by_cell)]
    if not places:
        return NOTHING
    header = ["MCR"]
    for place in places:
        header += [f"{FAMILIES[place[0]].title}, {setting(place)}: %", "against as chosen"]
    variants = {(p, name): outcomes.variant(p, name) for p in places for name in ABLATIONS}
    seeds = set.intersection(*(set(x) for x in variants.values() if x))
    lines = []
    for name in ABLATIONS:
        cells = []
        for place in places:
            found, chosen = variants[place, name], variants[place, AS_CHOSEN]
            same = found == chosen
            cells += [percent(found, seeds), "" if same else str(paired(found, chosen))]
        lines.append([name, *cells])
    used = [row for key, row in outcomes.rows.items() if key[0] == "ablations"]
    return f"{markdown(lines, header)}\n\n{origin(used)}"


def choices(outcomes: Outcomes) -> str:
    """How many tries each method had, and what was chosen."""
    families = [family for family in FAMILIES if outcomes.chosen.by_family.get(family)]
    if not families:
        return NOTHING
    lines = []
    for method in tuning.TRIES:
        found = [outcomes.chosen.by_family[family].get(method) for family in families]
        if any(found):
            cells = ["" if options is None else f"`{text_of(options)}`" for options in found]
            lines.append([shown(method), str(tuning.number_of_tries(method)), *cells])
    header = ["", "tries", *(FAMILIES[family].title for family in families)]
    return markdown(lines, header, words=len(header))
