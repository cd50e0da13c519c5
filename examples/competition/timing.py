"""Time of a step of every method over that of joint training, taken in turns."""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from bench import results

from . import records
from .chosen import available_methods
from .outcomes import origin
from .strategy import Strategy
from .tables import NOTHING, markdown, shown
from .training import OPTIMIZER, Setting, data_of, fit

FAMILY, VALUE = "speed", 1.0
TURNS, STEPS = 20, 64  # eight epochs
# What happens between epochs is to happen in the steps that are timed: k-means every fourth epoch.
OPTIONS = {"D&R": {"every": 4, "times": 1_000_000}}
COLUMNS = ("method", "seed", "epochs", "step_ms", "over_joint", "turns", *results.ENVIRONMENT)
WARM_UP = 12  # epochs before, past the warm-up of methods that have one


def prepared(method: str) -> tuple[Strategy, torch.optim.Optimizer]:
    """A method with its defaults, or `OPTIONS`, after some epochs, in training mode."""
    setting = Setting(FAMILY, VALUE, 0)
    strategy = fit(method, OPTIONS.get(method, {}), setting, WARM_UP).last
    return strategy.train(), OPTIMIZER(strategy.parameter_groups(1e-3), lr=1e-3)


def steps(
    strategy: Strategy, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> float:
    """Milliseconds of a step, over some that follow each other, what an epoch adds included."""
    data = data_of(Setting(FAMILY, VALUE, 0))
    done, start, epoch = 0, time.perf_counter(), WARM_UP
    while done < STEPS:
        strategy.epoch_start(epoch, data.train)
        for batch in strategy.batches(data.train, 64, generator):
            strategy.step(batch, optimizer)
            done += 1
        strategy.epoch_end(epoch, data.train, data.validation)
        epoch += 1
    return 1e3 * (time.perf_counter() - start) / done


def measure(methods: list[str], turns: int) -> Iterator[dict[str, str]]:
    """A row for each method: the median of its times, and of its ratios in each turn."""
    torch.set_num_threads(1)
    ready = {method: prepared(method) for method in dict.fromkeys(["joint", *methods])}
    generator = torch.Generator().manual_seed(0)
    times: dict[str, list[float]] = {method: [] for method in ready}
    for _ in tqdm(range(turns), unit="turn"):
        for method, (strategy, optimizer) in ready.items():
            times[method].append(steps(strategy, optimizer, generator))
    for method, found in times.items():
        ratios = [a / b for a, b in zip(found, times["joint"], strict=True)]
        yield {
            "method": method,
            "seed": "0",
            "epochs": str(WARM_UP),
            "step_ms": f"{statistics.median(found):.4g}",
            "over_joint": f"{statistics.median(ratios):.4g}",
            "turns": str(turns),
            **records.environment(),
        }


def table(folder: Path) -> str:
    """The times as Markdown."""
    rows = results.read(folder / "time.csv")
    if not rows:
        return NOTHING
    lines = [
        [shown(row["method"]), row["step_ms"], f"{float(row['over_joint']):.2f}"] for row in rows
    ]
    header = ["", "step, ms", "over a step of joint training"]
    note = f"Medians of {rows[0]['turns']} turns of {STEPS} steps; D&R with k-means every 4 epochs."
    return f"{markdown(lines, header)}\n\n{note} {origin(rows)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--methods", nargs="+", choices=available_methods(), metavar="NAME")
    parser.add_argument("--out", type=Path, default=records.RESULTS)
    parser.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """The command `time`."""
    methods = list(options.methods or available_methods())
    rows = list(measure(methods, options.turns))
    results.write(options.out / "time.csv", rows, COLUMNS)
    print(table(options.out))
    return 0
