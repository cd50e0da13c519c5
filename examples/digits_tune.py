"""How the weights of digits_settings.py were chosen: by validation accuracy, over several seeds."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from digits_compare import in_processes
from digits_data import Loader
from digits_evaluate import score
from digits_settings import SETTINGS
from tabulate import tabulate
from train_digits import METHODS, train

TUNE_SEEDS = (100, 101, 102)  # none of them is a seed of the tables
# Equally many tries for both.
GRIDS: dict[str, list[tuple[float, ...]]] = {
    "multi-loss": [(u,) for u in (0.1, 0.3, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0)],
    "MCR": list(itertools.product((3.0, 10.0), (0.01, 0.1), (1.0, 3.0))),
}
WEIGHTS = ("unimodal", "mipd", "contrastive")


@dataclass(frozen=True)
class Try:
    """One method with weights of its own, in one setting with one seed."""

    load: Loader
    setting: str
    method: str
    weights: tuple[float, ...]
    seed: int
    epochs: int


def validated(attempt: Try) -> tuple[float, float]:
    """Accuracy and importance of the second modality, on validation rows."""
    digits = attempt.load(attempt.seed)
    digits = digits.scaled(SETTINGS[digits.names][attempt.setting].scale)
    batch_loss = METHODS[attempt.method](*attempt.weights)
    model = train(batch_loss, digits, attempt.epochs, attempt.seed)
    scores = score(model, attempt.method, digits, digits.validation)
    return scores.accuracy, scores.importance


def tune(load: Loader, settings: Sequence[str], epochs: int, jobs: int) -> None:
    """Print every try of each method in each setting, the best one first."""
    sweeps = list(itertools.product(settings, GRIDS))
    tries = [
        Try(load, setting, method, weights, seed, epochs)
        for setting, method in sweeps
        for weights in GRIDS[method]
        for seed in TUNE_SEEDS
    ]
    found = dict(in_processes(validated, tries, jobs, "tries"))
    for setting, method in sweeps:
        rows = []
        for weights in GRIDS[method]:
            same = (setting, method, weights)
            of_seeds = [v for t, v in found.items() if (t.setting, t.method, t.weights) == same]
            rows.append((*weights, *(100 * np.mean(of_seeds, axis=0))))
        names = WEIGHTS[: len(rows[0]) - 2]
        rows.sort(key=lambda row: row[len(names)], reverse=True)
        print(
            f"\n{method}, {setting}: {len(rows)} tries, means over {len(TUNE_SEEDS)} seeds on "
            "validation rows"
        )
        headers = (*names, "accuracy %", "importance of the second %")
        print(tabulate(rows, headers, floatfmt=(*["g"] * len(names), ".2f", ".1f")))
