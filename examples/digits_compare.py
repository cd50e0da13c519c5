"""Every method with every seed in every setting, shared among processes."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from digits_data import Loader
from digits_evaluate import ALONE, Scores, probabilities, score, score_of
from digits_settings import SETTINGS
from tqdm import tqdm
from train_digits import METHODS, train

import mcr_fast

Made = TypeVar("Made")


@dataclass(frozen=True)
class Run:
    """One model, or one ensemble of two, on the test rows; shares are 0 to 1."""

    setting: str
    method: str
    seed: int
    scores: Scores
    accuracies: tuple[float, ...] = ()  # at each look, on the validation rows
    importances: tuple[float, ...] = ()  # of the second modality, the same


@dataclass(frozen=True)
class Task:
    """One seed in one setting: split, pairing, first weights and batches are the seed's."""

    load: Loader
    setting: str
    seed: int
    epochs: int


def compare(task: Task) -> list[Run]:
    """All methods and the ensemble, on the same rows; the one look at the test rows."""
    digits = task.load(task.seed)
    setting = SETTINGS[digits.names][task.setting]
    digits = digits.scaled(setting.scale)
    runs, members = [], []
    for method, make in METHODS.items():
        monitor = None
        if method not in ALONE:
            monitor = mcr_fast.MCRMonitor(digits.names, every=1, stride=1)
        batch_loss = make(*setting.weights(method))
        model = train(batch_loss, digits, task.epochs, task.seed, monitor)
        scores = score(model, method, digits, digits.test)
        if monitor is None:
            members.append(probabilities(model, method, digits, digits.test))
            runs.append(Run(task.setting, method, task.seed, scores))
            continue
        monitor.flush()
        curves = (
            tuple(record[name] for record in monitor.history)
            for name in ("accuracy", f"importance/{digits.names[1]}")
        )
        runs.append(Run(task.setting, method, task.seed, scores, *curves))
    both = score_of(torch.stack(members).mean(0), digits.test.labels)
    runs.insert(len(members), Run(task.setting, "ensemble", task.seed, both))
    return runs


def compare_all(tasks: Sequence[Task], jobs: int) -> list[Run]:
    """The runs of all tasks, in the order of the tasks."""
    made = dict(in_processes(compare, tasks, jobs, "seeds, in each setting"))
    return [run for task in tasks for run in made[task]]


def in_processes(
    work: Callable[[Any], Made], tasks: Sequence[Any], jobs: int, what: str
) -> Iterator[tuple[Any, Made]]:
    """(task, what it made) as they come, with a bar; each process works on one thread.

    Layers are so small that sharing one among threads costs more than it saves.
    """
    with (
        ProcessPoolExecutor(
            jobs, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool,
        tqdm(total=len(tasks), desc=what) as bar,
    ):
        asked = {pool.submit(work, task): task for task in tasks}
        try:
            for done in as_completed(asked):
                bar.update()
                yield asked[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after an error: what has not begun


def default_jobs() -> int:
    """One process a core, four at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(4, cores or 1)
