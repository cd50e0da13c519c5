"""How options are chosen: five tries a method, by validation accuracy, on seeds of their own.

The learning rate is joint training's choice: its five tries are rates, and every other method
trains at the best one of them. So nothing is measured against joint training at a poor rate, and no
method has more tries than another: each spends its five on its own options, taken around the
published values. The unimodal models choose their own rate. A method whose paper leaves less than
five things to choose has fewer tries.

A family of data sets has one choice for all of its settings, by the mean validation accuracy over
all of them, each with a seed of its own that no result uses. Test rows are not looked at.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Options = dict[str, Any]

SEEDS = (100, 101, 102, 103)
SEEDS_OF_ONE = 3  # how many of them, where there is one setting; else each setting has its own
RATES: list[Options] = [{"lr": lr} for lr in (5e-4, 1e-3, 2e-3, 5e-3, 1e-2)]

TRIES: dict[str, list[Options]] = {
    "joint": RATES,
    "unimodal": RATES,
    "multi-loss": [{"weight": w} for w in (0.1, 0.3, 1.0, 3.0, 10.0)],
    "MMCosine": [{"scale": s} for s in (3.0, 5.0, 10.0, 15.0, 20.0)],
    "OGM": [
        {"alpha": 0.3},
        {"alpha": 0.8},
        {"alpha": 0.8, "noise": False},
        {"alpha": 0.3, "noise": False, "as_lr": True},
        {"alpha": 0.8, "noise": False, "as_lr": True},
    ],
    "OPM": [
        {"base": 0.3, "probability": 0.4},
        {"base": 0.3, "probability": 0.7},
        {"base": 0.5, "probability": 0.4},
        {"base": 0.5, "probability": 0.7},
        {"base": 0.5, "probability": 1.0},
    ],
    "AGM": [{"alpha": a} for a in (0.1, 0.3, 1.0, 2.0, 3.0)],
    "MLB": [
        {"alpha": 0.5, "beta": 10.0},
        {"alpha": 2.0, "beta": 1.0},
        {"alpha": 0.5, "beta": 10.0, "as_lr": True},
        {"alpha": 2.0, "beta": 1.0, "as_lr": True},
        {"alpha": 0.5, "beta": 2.0, "as_lr": True},
    ],
    "MSLR": [
        {"memory": 5},
        {"rates": [1.3, 0.7], "memory": 5},
        {"rates": [0.7, 1.3], "memory": 5},
        {"rates": [3.0, 0.3], "memory": 5},
        {"rates": [0.3, 3.0], "memory": 5},
    ],
    "MILES": [
        {"weight": 1.0},
        {"weight": 3.0},
        {"weight": 1.0, "threshold": 0.1},
        {"weight": 1.0, "factor": 0.2},
        {"weight": 3.0, "factor": 0.2},
    ],
    "MMPareto": [{"gamma": g} for g in (0.5, 1.0, 1.5, 2.0, 3.0)],
    "D&R": [
        {"every": 10, "times": 2, "strength": 3.0},
        {"every": 10, "times": 3, "strength": 3.0},
        {"every": 10, "times": 3, "strength": 5.0},
        {"every": 15, "times": 2, "strength": 3.0},
        {"every": 20, "times": 1, "strength": 5.0},
    ],
    "ReconBoost": [
        {"target_weight": 5.0},
        {"target_weight": 3.0},
        {"target_weight": 10.0},
        {"target_weight": 5.0, "stage_epochs": 4, "correction_epochs": 4},
        {"target_weight": 5.0, "agreement": 0.5},
    ],
    "MLA": [
        {},
        {"project": False},
        {"row_gates": False},
        {"project": False, "row_gates": False},
    ],
    "Remix": [
        {"warmup": 5},
        {"warmup": 10},
        {"warmup": 20},
        {"warmup": 10, "weight": 0.5},
        {"warmup": 10, "warmup_weight": 1.0, "weight": 3.0},
    ],
    "OMIB": [{"beta": b} for b in (1e-4, 1e-3, 1e-2, 3e-2, 1e-1)],
    "ARM": [{"limit": x} for x in (1.5, 2.0, 3.0, 5.0, 10.0)],
    "UMT": [{"scale": s} for s in (0.1, 1.0, 3.0, 10.0, 50.0)],
    "frozen": [{}],
    "SFC": [
        {"shortcuts": [1]},
        {"shortcuts": [0]},
        {},
        {"combination": "least"},
        {"own_encoder": True},
    ],
    "MCR": [
        {"weight": 1.0, "mipd": 0.1, "contrastive": 1.0},
        {"weight": 1.0, "mipd": 0.1, "contrastive": 0.3},
        {"weight": 1.0, "mipd": 0.01, "contrastive": 1.0},
        {"weight": 3.0, "mipd": 0.1, "contrastive": 0.3},
        {"weight": 0.1, "mipd": 0.1, "contrastive": 0.1},
    ],
}
OWN_RATE = {"joint", "unimodal"}


def text_of(options: Mapping[str, Any]) -> str:
    """Options as a cell of a table, the same for equal ones."""
    return json.dumps(options, sort_keys=True)


def places(values: Sequence[float]) -> list[tuple[float, int]]:
    """Settings and seeds on which every try of a family is trained."""
    if len(values) == 1:
        return [(values[0], seed) for seed in SEEDS[:SEEDS_OF_ONE]]
    return list(zip(values, SEEDS, strict=False))


def best(rows: Iterable[Mapping[str, str]]) -> str | None:
    """The options with the highest mean validation accuracy, the earlier row's if equal."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["options"], []).append(float(row["validation"]))
    if not found:
        return None
    return max(found, key=lambda options: statistics.fmean(found[options]))
