"""Trains jobs in processes and writes their rows; one that fails leaves the others alone."""

import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import groupby
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

import torch
from tqdm import tqdm

from . import records
from .jobs import Job
from .training import Setting, data_of, fit, score


@dataclass(frozen=True)
class Failure:
    """A training that did not come to its end."""

    job: Job
    error: str

    def __str__(self) -> str:
        job = self.job
        of = f"{job.family} {job.value:g}, {job.method} {job.variant}".rstrip()
        return f"failed: {of}, {job.options}, seed {job.seed}: {self.error}"


Outcome = dict[str, str] | Failure


def run_job(job: Job) -> dict[str, str]:
    """Train and measure one; a process trains on one thread."""
    torch.set_num_threads(1)  # the layers are too small to share
    options, teacher = job.decoded()
    setting = Setting(job.family, job.value, job.seed)
    trained = fit(job.method, options, setting, job.epochs, teacher)
    return records.row_of(job, score(trained, data_of(setting)), records.environment())


def attempt(job: Job) -> Outcome:
    try:
        return run_job(job)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Failure(job, f"{error!r} in {Path(where.filename).name}:{where.lineno}")


def run_group(group: Sequence[Job]) -> list[Outcome]:
    """Jobs on the same rows, whose data and teachers are then made once."""
    return [attempt(job) for job in group]


def same_rows(job: Job) -> tuple[str, float, int]:
    return job.family, job.value, job.seed


def groups_of(missing: Iterable[Job], size: int = 8) -> Iterator[list[Job]]:
    """Jobs on the same rows together, few enough that little is lost by a stop."""
    for _, found in groupby(sorted(missing, key=same_rows), key=same_rows):
        group = list(found)
        # teachers are kept by a process: the methods that need them in one piece
        group.sort(key=lambda job: job.teacher)
        yield from (group[i : i + size] for i in range(0, len(group), size))


def outcomes(missing: Sequence[Job], processes: int) -> Iterator[Outcome]:
    """Of every job, as they come."""
    if processes == 1:
        yield from (attempt(job) for group in groups_of(missing) for job in group)
        return
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload([__name__])  # torch is imported once, not by every process
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = {pool.submit(run_group, group): group for group in groups_of(missing)}
        try:
            for done in as_completed(waiting):
                error = done.exception()  # of the process, not of a training
                if error is None:
                    yield from done.result()
                else:
                    yield from (Failure(job, repr(error)) for job in waiting[done])
        except BaseException:  # a stop: what has not begun is not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def execute(wanted: Iterable[Job], folder: Path, processes: int, name: str) -> list[Failure]:
    """Train what has no row yet; a row is written as soon as its group is done.

    Returns the trainings that failed, which have no row and are tried again by a rerun.
    """
    missing = records.missing(wanted, folder)
    failed: list[Failure] = []
    if not missing:
        return failed
    with tqdm(total=len(missing), desc=name, unit="training") as bar:
        for found in outcomes(missing, processes):
            if isinstance(found, Failure):
                failed.append(found)
                tqdm.write(str(found))
            else:
                records.append(records.path_of(folder, found["experiment"]), found)
            bar.update()
    return failed
