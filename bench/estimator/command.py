"""`python -m bench estimator`: bias and variance over draws of donors, their cost, and accuracy.

    python -m bench estimator [--only PART] [--seeds 8] [--quick] [--out DIR]

Parts: draws, step (draws again, on training rows), cost, training, and figure, of what there is.

All of it runs on one thread.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate
from tqdm import tqdm

from bench import machine, results
from bench.estimator import cost, report, training
from bench.estimator.draws import Draw, measure
from bench.estimator.models import Batch, Model, trained

STAGES = (40, 640)  # training steps of the model that is measured
COUNTS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Effort:
    """Batches that draws are made for, draws of each, and batches for what differs between them."""

    batches: int
    draws: int
    between: int
    seconds: float  # of timed calls for each contestant

    def at(self, num_rows: int) -> "Effort":
        """Fewer batches where they are large: the same pairs, or so."""
        part = max(1.0, num_rows / 128)
        batches, between = (max(2, int(x / part)) for x in (self.batches, self.between))
        return Effort(batches, self.draws, between, self.seconds)


FULL, QUICK = Effort(48, 4, 240, 0.3), Effort(2, 2, 4, 0.002)


def draws_of(num_rows: int) -> list[Draw]:
    """Donors that all subsets share: every K that there is, and all pairs."""
    exhaustive = num_rows - 1
    cyclic = {k for k in COUNTS if k < exhaustive} | {exhaustive}
    uniform = {*COUNTS} | ({exhaustive} if num_rows <= 256 else set())
    return [Draw("cyclic", k) for k in sorted(cyclic)] + [
        Draw("uniform", k) for k in sorted(uniform)
    ]


def draws_of_three(num_rows: int) -> list[Draw]:
    """Own and shared donors, which differ in subsets of two members."""
    counts = (1, 8, min(32, num_rows - 1))
    return [
        Draw(scheme, k, shared)
        for shared in (True, False)
        for scheme in ("cyclic", "uniform")
        for k in counts
    ]


def _rows_of_draws(quick: bool) -> Iterator[dict[str, str]]:
    sizes = (32,) if quick else (32, 64, 128, 256, 512, 1024)
    effort, stages = (QUICK, (2, 4)) if quick else (FULL, STAGES)
    last = stages[-1]
    tasks = [(2, steps, n) for steps in stages for n in sizes]
    tasks += [(3, last, n) for n in sizes if n in (32, 128)]
    models = {pair: trained(*pair) for pair in dict.fromkeys((m, steps) for m, steps, _ in tasks)}
    for num_modalities, steps, n in tqdm(tasks, desc="draws", disable=None):
        model, part = models[num_modalities, steps], effort.at(n)
        draws = draws_of(n) if num_modalities == 2 else draws_of_three(n)
        make = partial(model.fresh_rows, n)
        for cells in _measured(model, make, draws, part, report.OF_DRAWS):
            yield {"M": str(num_modalities), "steps": str(steps), "N": str(n), **cells}


def _rows_of_steps(quick: bool) -> Iterator[dict[str, str]]:
    effort, stages = (QUICK, (2, 4)) if quick else (FULL, STAGES)
    tasks = [(steps, n) for steps in stages for n in ((32,) if quick else (32, 128))]
    for steps, n in tqdm(tasks, desc="step", disable=None):
        model = trained(2, steps)
        draws = [Draw("cyclic", min(k, n - 1)) for k in (1, 8, 32)]
        make = partial(model.training_rows, n)
        for cells in _measured(model, make, draws, effort.at(n), report.OF_STEPS):
            yield {"steps": str(steps), "N": str(n), **cells}


def _measured(
    model: Model,
    make: Callable[[torch.Generator], Batch],
    draws: Sequence[Draw],
    effort: Effort,
    columns: Sequence[str],
) -> Iterator[dict[str, str]]:
    """Each draw, with these columns of what was found."""
    how = {"batches": effort.batches, "draws_a_batch": effort.draws}
    for draw, found in measure(model, make, draws, **how, batches_between=effort.between):
        cells = {name: results.significant(value, 6) for name, value in found.items()}
        cells |= {"donors": "shared" if draw.shared else "own", "scheme": draw.scheme}
        yield {
            **{"K": str(draw.count), "batches": str(effort.batches)},
            **{"draws": str(effort.draws), "between": str(effort.between)},
            **{name: cells[name] for name in columns},
        }


def _rows_of_cost(quick: bool) -> Iterator[dict[str, str]]:
    effort = QUICK if quick else FULL
    largest = 32 if quick else 1024
    tasks = [
        (name, size, n)
        for name, size in cost.SIZES.items()
        for n in (32, 64, 128, 256, 512, 1024)
        if n <= min(size.largest, largest)
    ]
    for name, size, n in tqdm(tasks, desc="cost", disable=None):
        counts = (32, "all")
        peaks = {count: cost.peak_mb(size, n, count) for count in counts}
        for (term, count), ms in cost.times(size, n, counts, effort.seconds).items():
            yield {
                **{"size": name, "N": str(n), "term": term, "K": str(count)},
                "p50_ms": results.significant(ms),
                "peak_mb": results.significant(peaks[count]) if term == "L_MIPD" else "",
            }


def _rows_of_training(quick: bool, seeds: int) -> Iterator[dict[str, str]]:
    rows = training.run(seeds, 4 if quick else training.STEPS)
    yield from tqdm(rows, desc="training", total=seeds * training.ROWS_A_SEED, disable=None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--only", choices=(*report.FILES, "figure"), action="append")
    parser.add_argument("--seeds", type=int, default=8, help="models of each arm")
    parser.add_argument("--quick", action="store_true", help="few draws, small batches, two seeds")
    parser.add_argument("--out", type=Path, help="folder of the results; --quick needs one")
    parser.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """Measure, replace the results, print and draw them."""
    if options.quick and options.out is None:
        raise SystemExit("--quick needs --out: its rows are not to replace those of a whole run")
    torch.set_num_threads(1)
    folder = options.out or report.FOLDER
    makers = {
        "draws": lambda: _rows_of_draws(options.quick),
        "step": lambda: _rows_of_steps(options.quick),
        "cost": lambda: _rows_of_cost(options.quick),
        "training": lambda: _rows_of_training(
            options.quick, min(options.seeds, 2) if options.quick else options.seeds
        ),
    }
    for part in [name for name in makers if options.only is None or name in options.only]:
        rows: list[dict[str, str]] = []
        for row in makers[part]():
            rows.append(_placed(row))
            # each time: whoever stops it has what there is
            results.write(folder / report.FILES[part], rows, tuple(rows[0]))
        for make in report.TABLES[part].values():
            lines, header, _ = make(folder)
            print("", make.__doc__, tabulate(lines, header, disable_numparse=True), sep="\n")
    from bench.estimator.figure import draw_figure

    print(f"written to {folder}: {draw_figure(folder) or 'no figure before draws and cost'}")
    return 0


def _placed(row: dict[str, str]) -> dict[str, str]:
    return {**row, **machine.environment(), "load": f"{machine.load():.1f}"}
