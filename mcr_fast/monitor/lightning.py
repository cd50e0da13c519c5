"""The monitor as a callback of Lightning: `lightning.pytorch`, or `pytorch_lightning`."""

import importlib
import sys
from typing import Any

from torch import nn

from mcr_fast.monitor._monitor import MCRMonitor
from mcr_fast.monitor._trained import Watched

__all__ = ["MCRCallback"]


def _base() -> Any:
    """The class of callbacks of the package that the program has imported, or else of either."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in (*(name for name in names if name in sys.modules), *names):
        try:
            return importlib.import_module(name).Callback
        except ModuleNotFoundError:
            continue
    raise ImportError("MCRCallback needs Lightning: pip install lightning")


class MCRCallback(_base()):  # type: ignore[misc]
    """Watches the loss of a LightningModule while it is fitted.

    Records go to the monitor's own logs and to the trainer's loggers, there under ``mcr/`` and at
    the trainer's global step. An epoch of the trainer is one of the monitor. The monitor's state
    is in the trainer's checkpoints.

    Args:
        monitor: the monitor.
        loss: the `MCRLoss` or `MCRObjective`; None: the one that the LightningModule holds.
    """

    def __init__(self, monitor: MCRMonitor, *, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.monitor = monitor
        self._watched = Watched(monitor, loss)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch."""
        self._watched.start(pl_module)

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Pass new records on."""
        for record in self._watched.new_records():
            for logger in trainer.loggers:
                logger.log_metrics(record, step=trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """The monitor's epoch ends too."""
        self.monitor.end_epoch()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Watch no more."""
        self._watched.stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Watch no more."""
        self._watched.stop()

    def state_dict(self) -> dict[str, Any]:
        """The monitor's."""
        return self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The monitor's."""
        self.monitor.load_state_dict(state_dict)
