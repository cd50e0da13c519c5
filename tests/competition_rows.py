"""Rows of results as a run of examples/competition would write them, without any training."""

from functools import cache
from pathlib import Path

from examples.competition import jobs, outcomes, records
from examples.competition.chosen import Chosen, Effort, available_methods
from examples.competition.data import FAMILIES
from examples.competition.jobs import Job
from examples.competition.training import Scores

# one try a method, in one setting of a family
WHERE = cache(records.environment)
EFFORT = Effort(seeds=4, more_seeds=4, epochs=2, tries=1, tuning_places=1)


def row(job: Job, test: float = 0.5, validation: float = 0.5, alone=()) -> dict[str, str]:
    """That of a job; with a sensor lost a half and three quarters of its accuracy."""
    scores = Scores(test, test - 0.01, validation, 1, (0.5 * test, 0.75 * test), alone, 1.0)
    return records.row_of(job, scores, WHERE())


def chosen(folder: Path, effort: Effort = EFFORT) -> Chosen:
    return Chosen.of(records.rows(folder / "tuning.csv"), effort)


def tune(folder: Path, methods=None, families=FAMILIES, effort: Effort = EFFORT, good=None) -> None:
    """Rows of all tries, stage by stage; `good` gives a job's validation accuracy."""
    for _ in range(6):
        tries = jobs.tuning_jobs(
            families, methods or available_methods(), chosen(folder, effort), effort
        )
        for job in records.missing(tries, folder):
            accuracy = good(job) if good else 0.5
            records.append(folder / "tuning.csv", row(job, validation=accuracy))


def add(folder: Path, place, method: str, seed: int, test: float, alone=()) -> None:
    """A row of a result, with the chosen options."""
    job = jobs.final(*place, method, seed, chosen(folder), EFFORT.epochs)
    records.append(folder / f"{place[0]}.csv", row(job, test, alone=alone))


def load(folder: Path) -> outcomes.Outcomes:
    return outcomes.load(folder, EFFORT)
