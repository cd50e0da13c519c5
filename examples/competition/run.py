"""Runs experiments: first the tries that are missing, then the trainings that are missing."""

import argparse
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path

from tabulate import tabulate

from bench import machine

from . import jobs, records
from .chosen import Chosen, Effort, available_methods
from .data import FAMILIES, MissingPackage
from .execute import Failure, execute
from .records import RESULTS

QUICK = machine.ROOT / "build" / "competition-quick"
QUICK_METHODS = ("joint", "unimodal", "multi-loss", "MCR")
SECONDS = 1.1  # of a training on one idle core, the mean over all methods, for the estimate


def available(families: Iterable[str], complain: Callable[[str], None]) -> list[str]:
    """Those whose files are there; the others are named."""
    found = []
    for family in families:
        try:
            FAMILIES[family].load(FAMILIES[family].values[0], 0)
        except MissingPackage as error:
            complain(f"{family} is left out: {error}")
        else:
            found.append(family)
    return found


def plan(counts: dict[str, int], processes: int) -> str:
    """How many trainings, and about how long they take."""

    def minutes(count: int) -> str:
        return f"{count * SECONDS / processes / 60:.0f}"

    lines = [[name, str(count), minutes(count)] for name, count in counts.items()]
    total = sum(counts.values())
    lines.append(["all", str(total), minutes(total)])
    header = ["planned", "trainings", f"minutes on {processes} idle cores"]
    table = tabulate(lines, header, tablefmt="github", colalign=("left", "right", "right"))
    return f"{table}\nWhat has its row already is not trained again."


def choose(folder: Path, effort: Effort) -> Chosen:
    return Chosen.of(records.rows(records.path_of(folder, "tuning")), effort)


def tune(
    families: Sequence[str], methods: Sequence[str], folder: Path, effort: Effort, processes: int
) -> list[Failure]:
    """Stage by stage, until no try is left that can be made."""
    failed: dict[jobs.Job, Failure] = {}
    for stage in range(1, 2 * len(methods) + 2):
        tries = jobs.tuning_jobs(families, methods, choose(folder, effort), effort)
        wanted = [job for job in tries if job not in failed]
        if not records.missing(wanted, folder):
            break
        found = execute(wanted, folder, processes, f"tuning, stage {stage}")
        failed |= {failure.job: failure for failure in found}
    return list(failed.values())


def run(
    experiments: Collection[str],
    methods: Sequence[str],
    folder: Path,
    effort: Effort,
    processes: int,
) -> int:
    """All of it; 1 if a data set is not there or a training failed."""
    wanted = [family for family in FAMILIES if family in experiments]
    ablated = [family for family, _ in jobs.ABLATED] if "ablations" in experiments else []
    needed = dict.fromkeys([*wanted, *ablated])
    there = available(needed, partial(print, file=sys.stderr))
    tuned = jobs.with_needed([*methods, *(["MCR"] if ablated else [])])
    print(plan(jobs.planned(experiments, there, methods, effort), processes), flush=True)
    for path in folder.glob("*.csv"):
        records.repair(path)
    failed = tune(there, tuned, folder, effort, processes)
    chosen = choose(folder, effort)
    for family in wanted:
        if family in there:
            for method in methods:
                if not chosen.has(family, method):
                    print(f"{family}: {method} is left out, its tries are not complete")
            final = jobs.final_jobs(family, methods, chosen, effort)
            failed += execute(final, folder, processes, family)
    if ablated and all(family in there for family in ablated):
        failed += execute(jobs.ablation_jobs(chosen, effort), folder, processes, "ablations")
    print(f"Rows are in {folder}")
    for failure in failed:
        print(failure, file=sys.stderr)
    return 1 if failed or len(there) < len(needed) else 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    methods = available_methods()
    parser.add_argument("experiment", nargs="+", choices=(*jobs.EXPERIMENTS, "all"))
    parser.add_argument("--quick", action="store_true", help="few methods, seeds and epochs")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--methods", nargs="+", choices=methods, metavar="NAME")
    help_of_redo = "drop the rows of these methods, in all experiments, and train them anew"
    parser.add_argument(
        "--redo", nargs="+", choices=methods, metavar="METHOD", default=[], help=help_of_redo
    )
    parser.add_argument("--out", type=Path, help="folder, instead of bench/results/competition")
    parser.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """The command `run`."""
    experiments = jobs.EXPERIMENTS if "all" in options.experiment else options.experiment
    everything = QUICK_METHODS if options.quick else available_methods()
    asked = {*(options.methods or everything), *options.redo}
    methods = [method for method in available_methods() if method in asked]
    effort = Effort.quick() if options.quick else Effort()
    folder = options.out or (QUICK if options.quick else RESULTS)
    if options.redo:
        print(f"{records.drop(folder, options.redo)} rows dropped")
    return run(experiments, methods, folder, effort, options.jobs)
