"""Rows of results in CSV files that grow row by row, so that a run can be stopped and taken up."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from bench import machine
from bench.results import ENVIRONMENT, read, write

from .jobs import EXPERIMENTS, KEY, Job
from .training import Scores

RESULTS = machine.ROOT / "bench" / "results" / "competition"
MEASURED = (
    *("test", "test_last", "validation", "best_epoch"),
    "first_epoch",  # in which the method did something of its own
    *("without_0", "without_1"),  # test accuracy with this modality's sensor lost
    *("alone_0", "alone_1"),  # of the unimodal models
    "step_ms",
)
COLUMNS = ("experiment", *KEY, *MEASURED, *ENVIRONMENT)

Row = Mapping[str, str]


def environment() -> dict[str, str]:
    """Where a row was measured, and with how much else going on."""
    return {**machine.environment(), "load": f"{machine.load():.1f}"}


def row_of(job: Job, scores: Scores, where: Row) -> dict[str, str]:
    """A row of a file; accuracies are shares from 0 to 1."""
    figures: dict[str, float] = {
        "test": scores.test,
        "test_last": scores.test_last,
        "validation": scores.validation,
        "best_epoch": scores.best_epoch,
        "first_epoch": scores.first_epoch,
        "step_ms": scores.step_ms,
    }
    for name in ("without", "alone"):
        figures |= {f"{name}_{m}": x for m, x in enumerate(getattr(scores, name))}
    return {
        "experiment": job.experiment,
        **dict(zip(KEY, job.key, strict=True)),
        **{name: f"{x:.6g}" for name, x in figures.items()},
        **where,
    }


def path_of(folder: Path, experiment: str) -> Path:
    """The file of an experiment."""
    return folder / f"{experiment}.csv"


def append(path: Path, row: Row) -> None:
    """One row, written at once; the header first if the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    if not path.exists() or path.stat().st_size == 0:
        writer.writeheader()
    else:
        check_header(path)
    writer.writerow(row)
    with path.open("a", newline="", encoding="utf-8") as file:
        file.write(text.getvalue())


def repair(path: Path) -> None:
    """Drop a last line that was not written to its end."""
    if not path.exists():
        return
    text = path.read_bytes()
    if text and not text.endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])


def check_header(path: Path) -> None:
    """A ValueError if a file has other columns than rows are written with."""
    with path.open(newline="", encoding="utf-8") as file:
        found = tuple(next(csv.reader(file), ()))
    if found != COLUMNS:
        differ = ", ".join(sorted(set(found) ^ set(COLUMNS))) or "their order"
        raise ValueError(f"{path} has other columns ({differ}): move it away and train anew")


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file, none if there is no file; a ValueError if its columns are others."""
    if path.exists() and path.stat().st_size:
        check_header(path)
    return read(path)


def drop(folder: Path, methods: Collection[str]) -> int:
    """Take the rows of these methods out of all files; how many there were."""
    count = 0
    for experiment in (*EXPERIMENTS, "tuning"):
        path = path_of(folder, experiment)
        repair(path)
        found = rows(path)
        kept = [row for row in found if row["method"] not in methods]
        if len(kept) < len(found):
            write(path, kept, COLUMNS)
        count += len(found) - len(kept)
    return count


def keys(found: Iterable[Row]) -> set[tuple[str, ...]]:
    """What the rows are called."""
    return {tuple(row[column] for column in KEY) for row in found}


def missing(jobs: Iterable[Job], folder: Path) -> list[Job]:
    """The jobs without a row, in their order, each once."""
    done: dict[str, set[tuple[str, ...]]] = {}
    left: dict[tuple[str, ...], Job] = {}
    for job in jobs:
        if job.experiment not in done:
            done[job.experiment] = keys(rows(path_of(folder, job.experiment)))
        if job.key not in done[job.experiment]:
            left.setdefault((job.experiment, *job.key), job)
    return list(left.values())
