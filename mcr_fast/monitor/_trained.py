"""What the callbacks of training frameworks share: the loss in a model, and new records."""

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from mcr_fast.modules import MCRLoss
from mcr_fast.monitor._hooks import Watch
from mcr_fast.monitor._monitor import MCRMonitor
from mcr_fast.objective import MCRObjective


class Watched:
    """A monitor that watches the loss of a model that somebody else trains.

    Args:
        monitor: the monitor.
        loss: the `MCRLoss` or `MCRObjective`; None: the one that the model holds.
    """

    def __init__(self, monitor: MCRMonitor, loss: nn.Module | None) -> None:
        if not isinstance(monitor, MCRMonitor):
            raise TypeError(f"monitor must be an MCRMonitor, got {type(monitor).__name__}")
        self.monitor, self._loss = monitor, loss
        self._handle: Watch | None = None
        self._passed_on = 0  # records

    def start(self, model: nn.Module) -> None:
        """Watch the loss of a model, once."""
        if self._handle is None:
            self._handle = self.monitor.watch(self._loss or loss_of(model))
            self._passed_on = len(self.monitor.history)

    def stop(self) -> None:
        """Watch no more."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self.monitor.flush()

    def new_records(self) -> Iterator[dict[str, float]]:
        """Those that came since the last call, for other loggers: under ``mcr/``, without NaN."""
        history = self.monitor.history
        first, self._passed_on = min(self._passed_on, len(history)), len(history)
        for record in history[first:]:
            kept = ((k, v) for k, v in record.items() if k != "epoch" and not math.isnan(v))
            yield {f"mcr/{name}": value for name, value in kept}


def loss_of(model: Any) -> nn.Module:
    """The objective that a model holds, or else its loss."""
    modules = list(model.modules())
    for kind in (MCRObjective, MCRLoss):
        found = [module for module in modules if isinstance(module, kind)]
        if len(found) == 1:
            return found[0]
        if found:
            break
    raise ValueError(
        f"loss must be given: {type(model).__name__} holds {len(found)} modules of the class "
        f"{kind.__name__}, and one was to be found"
    )
