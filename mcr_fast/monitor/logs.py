"""Where a monitor's records go: callables of (step, values)."""

import csv
import math
from pathlib import Path
from typing import Any, TextIO


class CSVLog:
    """A line a record, with a header; what was not to be seen is an empty cell.

    Args:
        path: the file; its folder is made if there is none.
        append: go on with a file that is there, as after a restart; else it is replaced.
    """

    def __init__(self, path: str | Path, *, append: bool = False) -> None:
        self.path, self.append = Path(path), append
        self._file: TextIO | None = None

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Write a line, and flush: a run that is killed leaves what it had."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            goes_on = self.append and self.path.exists() and self.path.stat().st_size > 0
            self._file = self.path.open("a" if goes_on else "w", newline="", encoding="utf-8")
            self._writer = csv.writer(self._file)
            if not goes_on:
                self._writer.writerow(("step", *values))
        cells = ("" if math.isnan(value) else f"{value:.6g}" for value in values.values())
        self._writer.writerow((step, *cells))
        self._file.flush()

    def close(self) -> None:
        """Close the file; the next record would append to it."""
        if self._file is not None:
            self._file.close()
            self._file, self.append = None, True


class TensorBoardLog:
    """Scalars of TensorBoard, under ``mcr/``; what was not to be seen is left out.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or the folder to make one for.
        prefix: put before each name.
    """

    def __init__(self, writer: Any, *, prefix: str = "mcr/") -> None:
        self._own = isinstance(writer, (str, Path))
        self._writer, self.prefix = writer, prefix

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Add a record's scalars."""
        if isinstance(self._writer, (str, Path)):
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._writer))
        for name, value in values.items():
            if not math.isnan(value):
                self._writer.add_scalar(self.prefix + name, value, step)

    def close(self) -> None:
        """Write out what is buffered; close a writer that was made here."""
        if isinstance(self._writer, (str, Path)):
            return
        self._writer.flush()
        if self._own:
            self._writer.close()


class WandbLog:
    """One ``log`` of a Weights & Biases run a record, offline runs too.

    The run counts steps of its own, which another's ``log`` may be ahead of; so the step is a
    value beside the others, ``mcr/step``, and the axis of all that is under ``mcr/``.

    Args:
        run: what ``wandb.init`` returned.
        prefix: put before each name.
    """

    def __init__(self, run: Any, *, prefix: str = "mcr/") -> None:
        self.run, self.prefix = run, prefix
        self._defined = False

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Log a record."""
        axis = f"{self.prefix}step"
        if not self._defined:
            self.run.define_metric(axis)
            self.run.define_metric(f"{self.prefix}*", step_metric=axis)
            self._defined = True
        named = {self.prefix + k: value for k, value in values.items() if not math.isnan(value)}
        self.run.log({axis: step, **named})
