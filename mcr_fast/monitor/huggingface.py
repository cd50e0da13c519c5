"""The monitor as a callback of Hugging Face's Trainer."""

from typing import Any

from torch import nn
from transformers import TrainerCallback

from mcr_fast.monitor._monitor import MCRMonitor
from mcr_fast.monitor._trained import Watched

__all__ = ["MCRTrainerCallback"]

_Base: Any = TrainerCallback


class MCRTrainerCallback(_Base):  # type: ignore[misc]
    """Watches the loss of a model while a Trainer trains it.

    The latest record joins what the Trainer logs, under ``mcr/``, and its history
    (``trainer.state.log_history``). The Trainer's own reporters (``report_to``) were called before
    that, so give the monitor a `TensorBoardLog` or a `WandbLog` for them. An epoch of the Trainer
    is one of the monitor.

    Args:
        monitor: the monitor.
        loss: the `MCRLoss` or `MCRObjective`; None: the one that the model holds.
    """

    def __init__(self, monitor: MCRMonitor, *, loss: nn.Module | None = None) -> None:
        self.monitor = monitor
        self._watched = Watched(monitor, loss)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin to watch."""
        self._watched.start(given["model"])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Add the latest record, if there is a new one."""
        for record in self._watched.new_records():
            for entry in (logs, state.log_history[-1] if state.log_history else None):
                if entry is not None:
                    entry.update(record)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The monitor's epoch ends too."""
        self.monitor.end_epoch()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Watch no more."""
        self._watched.stop()
