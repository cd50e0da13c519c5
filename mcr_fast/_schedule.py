"""When `MCRObjective` adds the regularizer, and how much of it: a window and a linear warm-up."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from mcr_fast._names import choice
from mcr_fast._numbers import whole

Unit = Literal["step", "epoch"]
Window = Sequence[int | None]


class Schedule:
    """Counts training forwards, and says what the regularizer is multiplied by in the next one.

    In the window the factor is t / warmup in its t-th training forward, t = 1, 2, ..., and 1 from
    the warmup-th on; outside of the window it is 0.

    Attributes:
        steps: training forwards so far.
        steps_in_window: those of them that were in the window.
        epoch: the last one that was set.
        open: whether the next training forward is in the window.
        counts: whether the factor depends on the number of steps.
    """

    def __init__(self, warmup: int = 0, window: Window | None = None, unit: Unit = "step") -> None:
        self.warmup = whole("warmup", warmup, 0)
        self.window = _checked(window)
        choice("unit", unit, get_args(Unit))
        self.unit = unit
        self.counts = self.warmup > 0 or (self.window is not None and unit == "step")
        self.last = 0.0  # the factor of the training forward before
        self.set(0, 0, 0)

    def set(self, steps: int, steps_in_window: int, epoch: int) -> None:
        """Go on from these numbers, as of a checkpoint."""
        self.steps, self.steps_in_window, self.epoch = steps, steps_in_window, epoch
        self._look()

    def set_epoch(self, epoch: int) -> None:
        """The number of the epoch that begins."""
        self.epoch = whole("epoch", epoch, 0)
        self._look()

    def factor(self) -> float:
        """That of the next training forward."""
        if not self.open:
            return 0.0
        if self.steps_in_window + 1 >= self.warmup:
            return 1.0
        return (self.steps_in_window + 1) / self.warmup

    def count(self) -> float:
        """The factor of a training forward, which is counted."""
        self.last = self.factor()
        self.steps += 1
        self.steps_in_window += self.open
        if self.counts:
            self._look()
        return self.last

    def _look(self) -> None:
        if self.window is None:
            self.open = True
            return
        start, end = self.window
        at = self.steps if self.unit == "step" else self.epoch
        self.open = start <= at and (end is None or at < end)


def _checked(window: Any) -> tuple[int, int | None] | None:
    """(start, end), the end not included."""
    if window is None:
        return None
    if isinstance(window, str) or not isinstance(window, Sequence) or len(window) != 2:
        raise TypeError(
            f"window must be (start, end), the end not included or None, got {window!r}"
        )
    start = 0 if window[0] is None else whole("window[0]", window[0], 0)
    if window[1] is None:
        return start, None
    end = whole("window[1]", window[1], 0)
    if end <= start:
        raise ValueError(f"window must end after it starts, got {(start, end)}")
    return start, end
