"""The tables of the pages, in Markdown."""

from collections.abc import Iterable, Sequence

from tabulate import tabulate

from . import tuning
from .data import FAMILIES
from .intervals import mean, paired
from .jobs import ABLATED, ABLATIONS
from .outcomes import Outcomes, Place, origin
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


def percent(figures: dict[int, float]) -> str:
    return f"{mean(figures):.1f}" if figures else ""


def markdown(lines: Sequence[Sequence[str]], header: Sequence[str], words: int = 1) -> str:
    """A table whose first columns are words, the others figures."""
    align = ["left"] * words + ["right"] * (len(header) - words)
    return tabulate(lines, header, tablefmt="github", disable_numparse=True, colalign=align)


def accuracy(outcomes: Outcomes, families: Iterable[str]) -> str:
    """Mean test accuracy of every method, and the better modality alone."""
    families = [family for family in families if outcomes.places(family)]
    places = [place for family in families for place in outcomes.places(family)]
    if not places:
        return NOTHING
    header = ["test accuracy, %", *map(setting, places)]
    lines = [["better modality alone", *(percent(outcomes.better_alone(p)) for p in places)]]
    methods = dict.fromkeys(name for family in families for name in outcomes.methods(family))
    for name in methods:
        lines.append([shown(name), *(percent(outcomes.figures(p, name)) for p in places)])
    used = [row for key, row in outcomes.rows.items() if key[0] in families]
    return f"{markdown(lines, header)}\n\n{origin(used)}"


def differences(outcomes: Outcomes, families: Iterable[str]) -> str:
    """MCR against every method: points and 95 % intervals paired by seed."""
    places = [place for family in families for place in outcomes.places(family)]
    methods = dict.fromkeys(
        name for place in places for name in outcomes.methods(place[0]) if name != "MCR"
    )
    if not methods:
        return NOTHING
    lines = [
        [shown(name), *(str(outcomes.difference(p, "MCR", name)) for p in places)]
        for name in methods
    ]
    return markdown(lines, ["MCR minus ..., points", *map(setting, places)])


def lost_sensors(outcomes: Outcomes, family: str) -> str:
    """Test accuracy with one modality's latents at their training mean."""
    places = outcomes.places(family)
    if not places:
        return NOTHING
    names = FAMILIES[family].modalities
    header = ["test accuracy, %"]
    header += [f"{setting(p)}: {name} lost" for p in places for name in names]
    lines = []
    for method in outcomes.methods(family):
        cells = [
            percent(outcomes.figures(p, method, f"without_{m}")) for p in places for m in (0, 1)
        ]
        lines.append([shown(method), *cells])
    return markdown(lines, header)


def last_epoch(outcomes: Outcomes, families: Iterable[str]) -> str:
    """Test accuracy after the last epoch, which no validation has chosen."""
    places = [place for family in families for place in outcomes.places(family)]
    methods = dict.fromkeys(name for place in places for name in outcomes.methods(place[0]))
    if not methods:
        return NOTHING
    lines = [
        [shown(name), *(percent(outcomes.figures(p, name, "test_last")) for p in places)]
        for name in methods
    ]
    return markdown(lines, ["after the last epoch, %", *map(setting, places)])


def mean_ranks(outcomes: Outcomes) -> str:
    """Over all settings and seeds."""
    found = outcomes.ranks()
    if not found:
        return NOTHING
    lines = [
        [shown(name), f"{rank:.1f}", find(name).published]
        for name, rank in sorted(found.items(), key=lambda item: item[1])
    ]
    table = tabulate(
        lines,
        ["", "mean rank", "published"],
        tablefmt="github",
        disable_numparse=True,
        colalign=("left", "right", "left"),
    )
    return f"{table}\n\nRanks 1 to {len(found)}, over {len(outcomes.all_places())} settings."


def ablations(outcomes: Outcomes) -> str:
    """Every variant of MCR against the chosen one."""
    places = [p for p in ABLATED if any(k[:2] == ("ablations", p) for k in outcomes.rows)]
    if not places:
        return NOTHING
    header = ["MCR"]
    for place in places:
        header += [f"{FAMILIES[place[0]].title}, {setting(place)}: %", "against as chosen"]
    lines = []
    for variant in ABLATIONS:
        cells = []
        for place in places:
            found, chosen = (
                outcomes.figures(place, "MCR", experiment="ablations", variant=name)
                for name in (variant, "as chosen")
            )
            cells += [percent(found), "" if variant == "as chosen" else str(paired(found, chosen))]
        lines.append([variant, *cells])
    used = [row for key, row in outcomes.rows.items() if key[0] == "ablations"]
    return f"{markdown(lines, header)}\n\n{origin(used)}"


def choices(outcomes: Outcomes) -> str:
    """How many tries each method had, and what was chosen."""
    families = [family for family in FAMILIES if outcomes.chosen.by_family.get(family)]
    if not families:
        return NOTHING
    lines = []
    for method, tries in tuning.TRIES.items():
        if not any(method in outcomes.chosen.by_family[family] for family in families):
            continue
        cells = []
        for family in families:
            options = dict(outcomes.chosen.by_family[family].get(method, {}))
            if method not in tuning.OWN_RATE:
                options.pop("lr", None)
            cells.append(f"`{text_of(options)}`" if options else "")
        lines.append([shown(method), str(len(tries)), *cells])
    header = ["", "tries", *(FAMILIES[family].title for family in families)]
    return markdown(lines, header, words=len(header))
