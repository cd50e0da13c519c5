"""Sentences of the pages whose figures and verdicts come from the results."""

from collections.abc import Callable, Iterable

from .data import FAMILIES
from .intervals import Interval, holm
from .outcomes import ENSEMBLE, Outcomes, Place
from .tables import NOTHING, markdown, setting, shown

NAMED = ("OPM", "Remix", "MMCosine", "UMT", ENSEMBLE, "frozen")  # always mentioned
NULL = ("noise", "uci", "htad")
AGAINST = ("joint", "multi-loss", ENSEMBLE)  # of the primary contrasts
LEVEL = 0.05
NOT_MEASURED = "not measured"


def where(place: Place) -> str:
    title = FAMILIES[place[0]].title
    return title if len(FAMILIES[place[0]].values) == 1 else f"{title}, {setting(place)}"


def contrasts(outcomes: Outcomes) -> list[tuple[str, str, Interval, float]]:
    """Family, other method, MCR minus it over the whole family, and p by Holm over all of these."""
    found = [
        (family, other, outcomes.family_difference(family, "MCR", other))
        for family in FAMILIES
        for other in AGAINST
    ]
    found = [each for each in found if each[2].measured]
    corrected = holm(interval.p for _, _, interval in found)
    return [(*each, p) for each, p in zip(found, corrected, strict=True)]


def primary(outcomes: Outcomes) -> str:
    """The primary contrasts: one for each family and each of three methods."""
    found = contrasts(outcomes)
    if not found:
        return NOTHING
    by_family: dict[str, dict[str, str]] = {}
    for family, other, interval, p in found:
        mark = "**" if p < LEVEL else ""
        text = f"{mark}{interval}{mark} (p {p:.2g}, {interval.seeds} seeds)"
        by_family.setdefault(family, {})[other] = text
    lines = [
        [FAMILIES[family].title, *(cells.get(other, "") for other in AGAINST)]
        for family, cells in by_family.items()
    ]
    table = markdown(lines, ["MCR minus ..., points", *map(shown, AGAINST)])
    return (
        f"{table}\n\nThe mean over a family's settings, by seed; 95 % intervals. p is corrected by "
        f"Holm for the {len(found)} contrasts of this table; bold is below {LEVEL:g}."
    )


def better_than_mcr(outcomes: Outcomes) -> str:
    """Every method whose interval against MCR is above 0 somewhere, with the figures."""
    places = outcomes.all_places()
    methods = dict.fromkeys(name for p in places for name in outcomes.methods(p[0]))
    found = [
        (name, place, outcomes.difference(place, name, "MCR"))
        for name in methods
        if name != "MCR"
        for place in places
    ]
    found = [each for each in found if each[2].measured]
    if not found:
        return NOTHING
    corrected = holm(interval.p for _, _, interval in found)
    lines, surviving = [], 0
    for name in dict.fromkeys(name for name, _, _ in found):
        clear = []
        for (of, place, x), p in zip(found, corrected, strict=True):
            if of == name and x.low > 0:
                clear.append(f"{where(place)}: {x}{' (H)' if p < LEVEL else ''}")
                surviving += p < LEVEL
        if clear:
            lines.append(f"- **{shown(name)}**: {'; '.join(clear)}.")
        elif name in NAMED:
            lines.append(f"- {shown(name)}: nowhere beyond its interval.")
    counted = sum(x.low > 0 for _, _, x in found)
    expected = len(found) * LEVEL / 2
    head = (
        f"{len(found)} intervals were looked at, of which {counted} lie above 0; were there no "
        f"difference anywhere, {expected:.0f} would. {surviving} survive Holm's correction for all "
        "of them, marked (H)."
    )
    return "\n".join([head, "", *lines])


def verdict(
    differences: Iterable[tuple[Place, Interval]], holds: Callable[[Interval], bool]
) -> str:
    """Reached, or where not; a setting without figures is neither."""
    found = list(differences)
    there = [(place, x) for place, x in found if x.measured]
    without = [setting(place) for place, x in found if not x.measured]
    if not there:
        return NOT_MEASURED
    reached, missed = (
        "; ".join(f"{setting(p)}: {x}" for p, x in there if holds(x) == held)
        for held in (True, False)
    )
    rest = f"; {NOT_MEASURED} at {', '.join(without)}" if without else ""
    if missed:
        return f"**missed** at {missed}" + (f" (reached at {reached})" if reached else "") + rest
    return f"{'so far ' if without else ''}reached ({reached}){rest}"


def above_zero(x: Interval) -> bool:
    return x.low > 0


def not_below(outcomes: Outcomes, families: Iterable[str]) -> str:
    """Whether no interval lies below 0, and the one that reaches down furthest."""
    found = [
        (place, other, outcomes.difference(place, "MCR", other))
        for family in families
        for other in AGAINST[:2]
        for place in ((family, value) for value in FAMILIES[family].values)
    ]
    there = [each for each in found if each[2].measured]
    if not there:
        return NOT_MEASURED
    place, other, worst = min(there, key=lambda each: each[2].mean)
    lowest = min(there, key=lambda each: each[2].low)
    missed = any(x.high < 0 for _, _, x in there)
    whole = len(there) == len(found)
    word = "**missed**" if missed else "reached" if whole else "so far reached"
    rest = f"; {NOT_MEASURED}: {len(found) - len(there)} of {len(found)}"
    return (
        f"{word}; worst mean {worst} ({where(place)}, minus {other}), lowest end "
        f"{lowest[2].low:+.1f} ({where(lowest[0])}, minus {lowest[1]})"
        f"{'' if whole else rest}"
    )


def goals(outcomes: Outcomes) -> str:
    """What the sweeps were to show, and whether they do."""

    def of(family: str, wanted: Callable[[float], bool]) -> list[tuple[Place, Interval]]:
        places = [(family, value) for value in FAMILIES[family].values if wanted(value)]
        return [(place, outcomes.difference(place, "MCR", "joint")) for place in places]

    lines = [
        [
            "speed sweep, s <= .1: MCR above joint, interval above 0",
            verdict(of("speed", lambda value: value <= 0.1), above_zero),
        ],
        [
            "Figure 1, ratios >= .5: MCR above joint, interval above 0",
            verdict(of("figure1", lambda value: value >= 0.5), above_zero),
        ],
        [
            "both sweeps: MCR not below joint or multi-loss beyond its interval",
            not_below(outcomes, ("speed", "figure1")),
        ],
    ]
    return markdown(lines, ["goal", "found"], words=2)


def signs(outcomes: Outcomes) -> str:
    """In each setting: is joint training below the better modality, and what MCR brought."""
    lines = []
    for place in outcomes.all_places():
        found = [outcomes.difference(place, "MCR", other) for other in AGAINST]
        if any(x.measured for x in found):
            lines.append([where(place), *map(str, (outcomes.sign(place), *found))])
    header = [
        "points, 95 % intervals paired by seed",
        "joint minus better modality alone",
        *(f"MCR minus {shown(other)}" for other in AGAINST),
    ]
    return markdown(lines, header) if lines else NOTHING


def word_of(x: Interval, other: str) -> str:
    """A verdict that an interval supports."""
    if x.low > 0:
        return f"above {other}"
    return f"below {other}" if x.high < 0 else f"no clear difference to {other}"


def null_results(outcomes: Outcomes) -> str:
    """What MCR changes in the settings that have no slow view by construction."""
    lines = []
    for place in (p for family in NULL for p in outcomes.places(family)):
        joint, other = (outcomes.difference(place, "MCR", name) for name in AGAINST[:2])
        if joint.measured:
            words = word_of(joint, "joint training")
            lines.append(f"- {where(place)}: {words} ({joint}; to multi-loss {other}).")
    return "\n".join(lines) if lines else NOTHING


def expectations(outcomes: Outcomes) -> str:
    """For each family, what came of MCR and how much of it unimodal losses bring alone."""
    lines = []
    for family, other, x, p in contrasts(outcomes):
        clear = x.low > 0 or x.high < 0
        held = "holds" if p < LEVEL else "does not hold"
        note = f", which {held} after Holm's correction" if clear else ""
        lines.append(f"- {FAMILIES[family].title}: {word_of(x, shown(other))} ({x}){note}.")
    return "\n".join(lines) if lines else NOTHING
