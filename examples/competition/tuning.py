"""How options are chosen: seven tries a method, by validation accuracy, on seeds of their own.

A method's rate comes first, at its starting options; then its own options at the best of these
rates. Joint training and the frozen encoders have nothing but a rate, and spend all tries on it;
the ensemble of unimodal models has one option, what it averages, and MLA three. So every method
trains at a rate of its own, and none has more tries.

The weight of the unimodal losses is chosen once, by multi-loss: the methods that are built on it
take its weight, so that none of them gains or loses by another one. MCR spends its own tries on its
own two terms, L_Con as a share of that weight: published are 1, 1 and .1 for the unimodal losses,
L_Con and L_MIPD (CREMA-D) and 1, 1, .01 (AVE), the other tries are below these.

Tries that do nothing under Adam are left out, such as a constant factor on gradients: OGM, MLB and
MMPareto are tried on learning rates (MMPareto starts as published).

A family of data sets has one choice for all of its settings, by the mean validation accuracy over
a few of them, each with a seed that no result uses. Test rows are not looked at.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Options = dict[str, Any]

SEEDS = (100, 101, 102, 103)

RATES = (1e-3, 3e-3, 1e-2)
MORE_RATES = (3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2)
ONLY_RATES = ("joint", "frozen")
OTHER_RATES = {
    **dict.fromkeys(ONLY_RATES, MORE_RATES),
    "unimodal": MORE_RATES[1:],  # and one option
    "MLA": (3e-4, *RATES),  # three options, and two steps a batch
}

# The weight of the unimodal losses as multi-loss chose it: the option that takes it.
HEIR = {
    "MLB": "weight",
    "MILES": "weight",
    "MMPareto": "weight",
    "Remix": "warmup_weight",
    "MCR": "weight",
}
SHARE = "contrastive_share"  # of that weight, in MCR's tries: becomes `contrastive`

# What a method starts with, and its other tries. Not named: as its class has it.
TRIES: dict[str, list[Options]] = {
    "joint": [{}],
    "unimodal": [{}, {"average": "logits"}],
    "multi-loss": [{"weight": w} for w in (1.0, 0.1, 0.3, 3.0, 10.0)],
    "MMCosine": [{"scale": s} for s in (10.0, 3.0, 5.0, 15.0, 20.0)],
    "OGM": [
        {"alpha": 0.8, "as_lr": True},
        {"alpha": 0.3, "as_lr": True},
        {"alpha": 1.0, "as_lr": True},
        {"alpha": 0.8, "noise": False, "as_lr": True},
        {"alpha": 0.3, "noise": False, "as_lr": True},
    ],
    "OPM": [
        {"base": 0.5, "probability": 0.7},
        {"base": 0.3, "probability": 0.4},
        {"base": 0.3, "probability": 0.7},
        {"base": 0.5, "probability": 0.4},
        {"base": 0.5, "probability": 1.0},
    ],
    "AGM": [{"alpha": a} for a in (1.0, 0.1, 0.3, 2.0, 3.0)],
    "MLB": [
        {"alpha": 0.5, "beta": 10.0, "as_lr": True},
        {"alpha": 2.0, "beta": 1.0, "as_lr": True},
        {"alpha": 2.0, "beta": 0.5, "as_lr": True},
        {"alpha": 0.5, "beta": 2.0, "as_lr": True},
        {"alpha": 2.0, "beta": 10.0, "as_lr": True},
    ],
    "MSLR": [
        {"memory": 5},
        {"rates": [1.3, 0.7], "memory": 5},
        {"rates": [0.7, 1.3], "memory": 5},
        {"rates": [3.0, 0.3], "memory": 5},
        {"rates": [0.3, 3.0], "memory": 5},
    ],
    "MILES": [
        {},
        {"threshold": 0.1},
        {"factor": 0.2},
        {"threshold": 0.1, "factor": 0.2},
        {"rows": "train"},
    ],
    "MMPareto": [{}, *({"gamma": g, "as_lr": True} for g in (1.5, 0.5, 2.0, 3.0))],
    "D&R": [
        {"every": 10, "times": 3, "strength": 3.0},
        {"every": 4, "times": 3, "strength": 3.0},
        {"every": 4, "times": 3, "strength": 5.0},
        {"every": 10, "times": 3, "strength": 5.0},
        {"every": 20, "times": 1, "strength": 3.0},
    ],
    "ReconBoost": [
        {},
        {"target_weight": 5.0, "others_weight": 3.0},
        {"stage_epochs": 4, "correction_epochs": 4},
        {"stage_epochs": 4, "correction_epochs": 4, "others_weight": 3.0},
        {"stage_epochs": 2, "correction_epochs": 4},
    ],
    "MLA": [{}, {"project": False}, {"row_gates": False}, {"project": False, "row_gates": False}],
    "Remix": [
        {"warmup": 10},
        {"warmup": 2},
        {"warmup": 5},
        {"warmup": 20},
        {"warmup": 2, "weight": 3.0},
    ],
    "OMIB": [
        {"beta": 1e-3},
        {"beta": 1e-4},
        {"beta": 1e-2},
        {"beta": 1e-1},
        {"beta": 1e-3, "warmup": 2},
    ],
    "ARM": [{"limit": x} for x in (5.0, 1.5, 2.0, 3.0, 10.0)],
    "UMT": [{"scale": s} for s in (10.0, 0.1, 1.0, 3.0, 50.0)],
    "frozen": [{}],
    "SFC": [
        {"shortcuts": [1], "own_encoder": True},  # as published, of one modality or the other
        {"shortcuts": [0], "own_encoder": True},
        {"shortcuts": [1]},
        {"shortcuts": [0]},
        {},
    ],
    "MCR": [
        {"mipd": 0.1, SHARE: 1.0},
        {"mipd": 0.01, SHARE: 1.0},
        {"mipd": 0.1, SHARE: 1 / 3},
        {"mipd": 0.01, SHARE: 1 / 3},
        {"mipd": 0.1, SHARE: 0.1},
    ],
}


def text_of(options: Mapping[str, Any]) -> str:
    """Options as a cell of a table, the same for equal ones."""
    return json.dumps(options, sort_keys=True)


def rates(method: str) -> tuple[float, ...]:
    """The learning rates that a method tries."""
    return OTHER_RATES.get(method, RATES)


def number_of_tries(method: str) -> int:
    """Different options that a method is trained with."""
    return len(rates(method)) + len(TRIES[method]) - 1


def complete(method: str, options: Options, unimodal_weight: float | None) -> Options:
    """A try with what the method takes from multi-loss, which has to have chosen."""
    found = dict(options)
    if method in HEIR:
        if unimodal_weight is None:
            raise ValueError(f"{method} takes the weight that multi-loss chooses")
        found[HEIR[method]] = unimodal_weight
        if SHARE in found:
            found["contrastive"] = round(found.pop(SHARE) * unimodal_weight, 4)
    return found


def rate_tries(method: str, unimodal_weight: float | None) -> list[Options]:
    """The first stage: a method's starting options at each rate."""
    start = complete(method, TRIES[method][0], unimodal_weight)
    return [{**start, "lr": lr} for lr in rates(method)]


def option_tries(method: str, unimodal_weight: float | None, lr: float) -> list[Options]:
    """The second one: all options at the rate that the first one chose; its best is among them."""
    return [{**complete(method, each, unimodal_weight), "lr": lr} for each in TRIES[method]]


def places(values: Sequence[float], count: int) -> list[tuple[float, int]]:
    """Settings, from the first to the last, and seeds on which every try of a family is trained."""
    last = len(values) - 1
    chosen = [values[round(i * last / max(count - 1, 1))] for i in range(count)]
    return list(zip(chosen, SEEDS, strict=False))


def best(tries: Iterable[Options], validation: Mapping[str, Sequence[float]]) -> Options:
    """The try with the highest mean validation accuracy, the earlier one if equal."""
    return max(tries, key=lambda options: statistics.fmean(validation[text_of(options)]))
