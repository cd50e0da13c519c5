"""Seeing who starves: running means of the regularizer's statistics, and where they are written."""

from mcr_fast.monitor._monitor import MCRMonitor
from mcr_fast.monitor.logs import CSVLog, TensorBoardLog, WandbLog

__all__ = ["CSVLog", "MCRMonitor", "TensorBoardLog", "WandbLog"]
