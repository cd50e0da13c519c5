"""How the settings of train_digits.py were chosen: by validation accuracy, over several seeds."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from digits_evaluate import Scores
from tabulate import tabulate
from tqdm import tqdm

TUNE_SEEDS = (100, 101, 102, 103)  # none of them is a seed of the table
NOISE_LEVELS = (0.5, 0.75, 1.0, 1.25, 1.5)
MULTI_LOSS_WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0)
UNIMODAL_WEIGHTS = (0.3, 1.0, 3.0)
MIPD_WEIGHTS = (0.01, 0.03, 0.1, 0.3)
CONTRASTIVE_WEIGHTS = (0.3, 1.0, 3.0)

# (noise, method, weights, seed) -> scores on the validation images
Fit = Callable[[float, str, Sequence[float], int], Scores]


def tune(fit: Fit, noise: float) -> None:
    """Print the sweeps of the noise, of the weight of multi-loss and of the weights of MCR."""
    sweep_noise(fit)
    sweep_weights(fit, noise, "joint", [()])
    sweep_weights(fit, noise, "multi-loss", [(u,) for u in MULTI_LOSS_WEIGHTS])
    grid = itertools.product(UNIMODAL_WEIGHTS, MIPD_WEIGHTS, CONTRASTIVE_WEIGHTS)
    sweep_weights(fit, noise, "MCR", list(grid))


def mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def sweep_noise(fit: Fit) -> None:
    """The least noise at which joint training lets the right half decide less than a quarter.

    The criterion looks at joint training only, neither at multi-loss nor at MCR.
    """
    rows = []
    for noise in tqdm(NOISE_LEVELS, desc="noise", unit="level"):
        alone = mean(fit(noise, "right half alone", (), s).probes[1] for s in TUNE_SEEDS)
        scores = [fit(noise, "joint", (), s) for s in TUNE_SEEDS]
        within = mean(s.probes[1] for s in scores)
        share = mean(s.importance[1] for s in scores)
        rows.append((noise, 100 * alone, 100 * within, 100 * (alone - within), 100 * share))
    headers = ("noise", "right alone %", "right in joint %", "left behind", "right importance %")
    print(tabulate(rows, headers, floatfmt=("g", ".1f", ".1f", ".1f", ".1f")))
    neglected = [row[0] for row in rows if row[4] < 25]
    print(f"Least noise with an importance below 25 %: {min(neglected, default=math.nan):g}\n")


def sweep_weights(fit: Fit, noise: float, method: str, grid: list[tuple[float, ...]]) -> None:
    """Every setting, the best validation accuracy first; the other columns choose nothing."""
    rows = []
    for weights in tqdm(grid, desc=method, unit="setting"):
        scores = [fit(noise, method, weights, s) for s in TUNE_SEEDS]
        accuracy = mean(s.accuracy for s in scores)
        probe = mean(s.probes[1] for s in scores)
        share = mean(s.importance[1] for s in scores)
        rows.append((*weights, 100 * accuracy, 100 * probe, 100 * share))
    names = ("unimodal", "mipd", "contrastive")[: len(grid[0])]
    rows.sort(key=lambda row: row[len(names)], reverse=True)
    print(f"{method}, means over {len(TUNE_SEEDS)} seeds on validation images:")
    headers = (*names, "accuracy %", "right probe %", "right importance %")
    print(tabulate(rows, headers, floatfmt=(*["g"] * len(names), ".2f", ".1f", ".1f")), "\n")
