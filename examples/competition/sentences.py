"""Sentences of the pages whose figures and verdicts come from the results."""

import math
from collections.abc import Callable, Iterable

from .data import FAMILIES
from .intervals import Interval, paired
from .outcomes import ENSEMBLE, Outcomes, Place
from .tables import NOTHING, markdown, setting, shown

NAMED = ("OPM", "Remix", "MMCosine", "UMT", ENSEMBLE, "frozen")  # always mentioned
NULL = ("noise", "uci", "htad")


def where(place: Place) -> str:
    title = FAMILIES[place[0]].title
    return title if len(FAMILIES[place[0]].values) == 1 else f"{title}, {setting(place)}"


def better_than_mcr(outcomes: Outcomes) -> str:
    """Every method whose interval against MCR is above 0 somewhere, with the figures."""
    lines = []
    methods = dict.fromkeys(name for f in FAMILIES for name in outcomes.methods(f))
    for name in methods:
        if name == "MCR":
            continue
        found = [(p, outcomes.difference(p, name, "MCR")) for p in outcomes.all_places()]
        clear = [f"{where(p)}: {x}" for p, x in found if x.low > 0]
        if clear:
            lines.append(f"- **{shown(name)}**: {'; '.join(clear)}.")
        elif name in NAMED:
            lines.append(f"- {shown(name)}: nowhere beyond its interval.")
    return "\n".join(lines) if lines else NOTHING


def verdict(
    differences: Iterable[tuple[Place, Interval]], holds: Callable[[Interval], bool]
) -> str:
    """Reached, or where not."""
    found = list(differences)
    if not found:
        return "not measured yet"
    reached, missed = (
        "; ".join(f"{setting(p)}: {x}" for p, x in found if holds(x) == held)
        for held in (True, False)
    )
    if not missed:
        return f"reached ({reached})"
    return f"**missed** at {missed}" + (f" (reached at {reached})" if reached else "")


def above_zero(x: Interval) -> bool:
    return x.low > 0


def not_below(x: Interval) -> bool:
    """Not below 0 beyond its interval."""
    return not x.high < 0


def goals(outcomes: Outcomes) -> str:
    """What the sweeps were to show, and whether they do."""

    def of(
        family: str, other: str, chosen: Callable[[float], bool]
    ) -> list[tuple[Place, Interval]]:
        places = [place for place in outcomes.places(family) if chosen(place[1])]
        return [(place, outcomes.difference(place, "MCR", other)) for place in places]

    sweeps = [
        pair
        for family in ("speed", "figure1")
        for other in ("joint", "multi-loss")
        for pair in of(family, other, lambda value: True)
    ]
    below = [f"{where(p)}: {x}" for p, x in sweeps if not not_below(x)]
    kept = f"**missed** at {'; '.join(below)}" if below else "reached"
    lines = [
        [
            "speed sweep, s <= .1: MCR above joint, interval above 0",
            verdict(of("speed", "joint", lambda value: value <= 0.1), above_zero),
        ],
        [
            "Figure 1, ratios >= .5: MCR above joint, interval above 0",
            verdict(of("figure1", "joint", lambda value: value >= 0.5), above_zero),
        ],
        [
            "both sweeps: MCR not below joint or multi-loss beyond its interval",
            kept if sweeps else "not measured yet",
        ],
    ]
    return markdown(lines, ["goal", "found"], words=2)


def signs(outcomes: Outcomes) -> str:
    """In each setting: is joint training below the better modality, and what MCR brought."""
    lines = []
    for place in outcomes.all_places():
        joint = outcomes.figures(place, "joint")
        lines.append(
            [
                where(place),
                str(paired(joint, outcomes.better_alone(place))),
                str(outcomes.difference(place, "MCR", "joint")),
                str(outcomes.difference(place, "MCR", "multi-loss")),
                str(outcomes.difference(place, "MCR", ENSEMBLE)),
            ]
        )
    header = [
        "points, 95 % intervals paired by seed",
        "joint minus better modality alone",
        *("MCR minus joint", "MCR minus multi-loss", "MCR minus ensemble"),
    ]
    return markdown(lines, header) if lines else NOTHING


def null_results(outcomes: Outcomes) -> str:
    """What MCR changes in the settings that have no slow view by construction."""
    lines = []
    for place in (p for family in NULL for p in outcomes.places(family)):
        joint = outcomes.difference(place, "MCR", "joint")
        other = outcomes.difference(place, "MCR", "multi-loss")
        if math.isnan(joint.mean):
            continue
        if joint.low > 0:
            word = "MCR is above joint training"
        elif joint.high < 0:
            word = "MCR is below joint training"
        else:
            word = "no difference to joint training"
        lines.append(f"- {where(place)}: {word} ({joint}; to multi-loss {other}).")
    return "\n".join(lines) if lines else NOTHING


def claims(outcomes: Outcomes) -> str:
    """What the paper says beside what came out here."""
    places = outcomes.all_places()
    if not places:
        return NOTHING
    clear = {
        other: [p for p in places if outcomes.difference(p, "MCR", other).low > 0]
        for other in ("joint", "multi-loss", ENSEMBLE)
    }
    below = [p for p in places if outcomes.difference(p, "MCR", ENSEMBLE).high < 0]
    ranks = outcomes.ranks()
    first = [shown(name) for name, rank in ranks.items() if rank == min(ranks.values())]
    total = len(places)
    below_text = f" ({'; '.join(map(where, below))})" if below else ""
    lines = [
        [
            "above every method before it",
            f"best mean rank: {' and '.join(first) or '-'}; beyond its interval above joint "
            f"training in {len(clear['joint'])} of {total} settings, above multi-loss in "
            f"{len(clear['multi-loss'])}",
            "the same number of tries for all here; small encoders from scratch, where many of "
            "the paper's start from unimodal training on the same data",
        ],
        [
            "consistently above the ensemble of unimodal models",
            f"above in {len(clear[ENSEMBLE])} of {total} settings, below in {len(below)}"
            f"{below_text}",
            "unimodal models know no competition: the slower a view, the less of it is left to "
            "any joint training",
        ],
        [
            "gains on synthetic data (Figure 1)",
            "MCR minus joint: "
            + "; ".join(
                f"{setting(p)}: {outcomes.difference(p, 'MCR', 'joint')}"
                for p in outcomes.places("figure1")
            ),
            "the paper's generator was not at hand: ours is a reading of its axis",
        ],
    ]
    return markdown(lines, ["the paper", "here", "why they may differ"], words=3)
