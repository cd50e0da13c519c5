"""How the weights of digits_settings.py were chosen: by validation accuracy, over several seeds.

And whether weights a step beyond the edges of that grid would have done better.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from digits_compare import in_processes
from digits_data import Loader
from digits_evaluate import score
from digits_report import paired_interval
from digits_settings import SETTINGS
from tabulate import tabulate
from train_digits import METHODS, train

TUNE_SEEDS = (100, 101, 102)  # none of them is a seed of the tables
# Equally many tries for both.
GRIDS: dict[str, list[tuple[float, ...]]] = {
    "multi-loss": [(u,) for u in (0.1, 0.3, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0)],
    "MCR": list(itertools.product((3.0, 10.0), (0.01, 0.1), (1.0, 3.0))),
}
# What the grid of MCR chose lies on its edges, so these go a step further; multi-loss has as many
# more, finer and further ones. They were tried when the demo had its weights, and chose none.
BEYOND: dict[str, list[tuple[float, ...]]] = {
    "multi-loss": [(7.0,), (15.0,), (50.0,), (100.0,)],
    "MCR": [(30.0, 0.01, 3.0), (10.0, 0.003, 3.0), (10.0, 0.01, 10.0), (30.0, 0.01, 10.0)],
}
WEIGHTS = ("unimodal", "mipd", "contrastive")
COLUMNS = ("setting", "method", "weights", "seed", "accuracy", "second_importance")


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


def tune(load: Loader, settings: Sequence[str], epochs: int, jobs: int) -> list[dict[str, str]]:
    """Print every try of each method in each setting, the best one first; a row for each seed."""
    sweeps = list(itertools.product(settings, GRIDS))
    tries = [
        Try(load, setting, method, weights, seed, epochs)
        for setting, method in sweeps
        for weights in (*GRIDS[method], *BEYOND[method])
        for seed in TUNE_SEEDS
    ]
    found = dict(in_processes(validated, tries, jobs, "tries"))
    for setting, method in sweeps:
        _print_sweep({t: v for t, v in found.items() if (t.setting, t.method) == (setting, method)})
    return [
        {
            "setting": attempt.setting,
            "method": attempt.method,
            "weights": _text(attempt.weights),
            "seed": str(attempt.seed),
            "accuracy": f"{found[attempt][0]:.5f}",
            "second_importance": f"{found[attempt][1]:.5f}",
        }
        for attempt in tries
    ]


def _print_sweep(found: dict[Try, tuple[float, float]]) -> None:
    """One method in one setting."""
    first = next(iter(found))
    rows = []
    for weights in dict.fromkeys(attempt.weights for attempt in found):
        of_seeds = [v for t, v in found.items() if t.weights == weights]
        beyond = "yes" if weights in BEYOND[first.method] else ""
        rows.append((*weights, beyond, *(100 * np.mean(of_seeds, axis=0))))
    rows.sort(key=lambda row: row[-2], reverse=True)
    print(
        f"\n{first.method}, {first.setting}: {len(rows)} tries, means over {len(TUNE_SEEDS)} "
        "seeds on validation rows"
    )
    names = WEIGHTS[: len(first.weights)]
    headers = (*names, "beyond the grid", "accuracy %", "importance of the second %")
    print(tabulate(rows, headers, floatfmt=(*["g"] * len(names), "", ".2f", ".1f")))


def _text(weights: Sequence[float]) -> str:
    return " ".join(f"{weight:g}" for weight in weights)


def beyond_table(rows: Sequence[Mapping[str, str]], names: tuple[str, str]) -> str:
    """For a page: what the demo trains with, the best of its grid, the best of `BEYOND`."""
    scores: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        key = (row["setting"], row["method"], row["weights"])
        scores.setdefault(key, []).append(float(row["accuracy"]))
    lines = []
    for name, method in itertools.product(SETTINGS[names], GRIDS):
        setting = SETTINGS[names][name]
        chosen = _text(setting.weights(method))

        def of(weights: str, name: str = name, method: str = method) -> list[float]:
            return scores[name, method, weights]

        inside, outside = (
            max(map(_text, grid[method]), key=lambda weights: np.mean(of(weights)))
            for grid in (GRIDS, BEYOND)
        )
        cells = (f"{w}: {100 * np.mean(of(w)):.1f}" for w in (chosen, inside, outside))
        gain = paired_interval(of(outside), of(chosen))
        lines.append((name, method, *cells, str(gain)))
    headers = ("setting", "method", "the demo's weights: accuracy, %", "best of the grid")
    headers += (f"best of {len(BEYOND['MCR'])} more", "these against the demo's, points")
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)
