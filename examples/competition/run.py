"""Runs experiments: first the tries that are missing, then the trainings that are missing."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from bench import machine

from . import jobs, records
from .data import FAMILIES, MissingPackage
from .jobs import Chosen, Effort, Job
from .records import RESULTS
from .training import Setting, data_of, fit, score

QUICK = machine.ROOT / "build" / "competition-quick"
QUICK_METHODS = ("joint", "unimodal", "multi-loss", "MCR")


def run_job(job: Job, epochs: int) -> dict[str, str]:
    """Train and measure one; a process trains on one thread."""
    torch.set_num_threads(1)  # the layers are too small to share
    options, teacher = job.decoded()
    setting = Setting(job.family, job.value, job.seed)
    try:
        trained = fit(job.method, options, setting, epochs, teacher)
    except Exception as error:
        raise RuntimeError(f"{job} failed") from error
    return records.row_of(job, score(trained, data_of(setting)), epochs, records.environment())


def run_group(group: Sequence[Job], epochs: int) -> list[dict[str, str]]:
    """Jobs on the same rows, whose data and teachers are then made once."""
    return [run_job(job, epochs) for job in group]


def same_rows(job: Job) -> tuple[str, float, int]:
    return job.family, job.value, job.seed


def groups_of(missing: Iterable[Job], size: int = 8) -> Iterator[list[Job]]:
    """Jobs on the same rows together, few enough that little is lost by a stop."""
    for _, found in groupby(sorted(missing, key=same_rows), key=same_rows):
        group = list(found)
        # teachers are kept by a process: the methods that need them in one piece
        group.sort(key=lambda job: job.teacher)
        yield from (group[i : i + size] for i in range(0, len(group), size))


def execute(wanted: Iterable[Job], folder: Path, epochs: int, processes: int, name: str) -> None:
    """Train what has no row yet; a row is written as soon as its group is done."""
    missing = records.missing(wanted, folder)
    if not missing:
        return

    def write(rows: Iterable[dict[str, str]], bar: tqdm) -> None:
        for row in rows:
            records.append(records.path_of(folder, row["experiment"]), row)
            bar.update()

    with tqdm(total=len(missing), desc=name, unit="training") as bar:
        if processes == 1:
            for job in (job for group in groups_of(missing) for job in group):
                write([run_job(job, epochs)], bar)
            return
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            waiting = [pool.submit(run_group, group, epochs) for group in groups_of(missing)]
            try:
                for done in as_completed(waiting):
                    write(done.result(), bar)
            except BaseException:  # a stop, too: what has not begun is not begun
                pool.shutdown(wait=False, cancel_futures=True)
                raise


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


def run(
    experiments: Sequence[str],
    methods: Sequence[str],
    folder: Path,
    effort: Effort,
    processes: int,
) -> int:
    """All of it; 1 if a data set is not there."""
    wanted = [family for family in FAMILIES if family in experiments]
    ablated = [family for family, _ in jobs.ABLATED] if "ablations" in experiments else []
    needed = dict.fromkeys([*wanted, *ablated])
    there = available(needed, partial(print, file=sys.stderr))
    for path in folder.glob("*.csv"):
        records.repair(path)
    train = partial(execute, folder=folder, epochs=effort.epochs, processes=processes)

    def chosen() -> Chosen:
        return Chosen.of(records.rows(records.path_of(folder, "tuning")), methods)

    # first the common learning rate, and the unimodal models that others learn from
    for stage, name in ((("joint", "unimodal"), "learning rates"), (methods, "options")):
        stage_methods = [method for method in stage if method in methods]
        train(list(jobs.tuning_jobs(there, stage_methods, chosen(), effort)), name=name)
    options = chosen()
    for family in wanted:
        if family in there:
            train(list(jobs.final_jobs(family, methods, effort.seeds, options)), name=family)
    if ablated and all(family in there for family in ablated):
        train(list(jobs.ablation_jobs(effort.seeds, options)), name="ablations")
    print(f"Rows are in {folder}")
    return 0 if len(there) == len(needed) else 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", nargs="+", choices=(*jobs.EXPERIMENTS, "all"))
    parser.add_argument("--quick", action="store_true", help="few methods, seeds and epochs")
    parser.add_argument("--seeds", type=int, default=Effort.seeds)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--methods", nargs="+", choices=jobs.available_methods(), metavar="NAME")
    parser.add_argument("--out", type=Path, help="folder, instead of bench/results/competition")
    parser.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """The command `run`."""
    experiments = jobs.EXPERIMENTS if "all" in options.experiment else options.experiment
    methods = options.methods or jobs.available_methods()
    folder, effort = options.out or RESULTS, Effort(seeds=options.seeds)
    if options.quick:
        methods = options.methods or list(QUICK_METHODS)
        folder, effort = options.out or QUICK, Effort.quick()
    return run(experiments, methods, folder, effort, options.jobs)
