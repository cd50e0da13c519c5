"""What an H200 does in a second, what a kernel asks of it, and the time that gives.

Published: bandwidth of the memory, clock, schedulers. Measured by others: the bfloat16 product, the
L2 cache. A guess: the share of issue slots that a kernel fills. `../shared/performance.md` and
docs/cost/step.md have the sources.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from bench import results
from bench.machine import ROOT

ISSUE = 528 * 32 * 1.98e9  # instructions of a lane: schedulers, lanes, clock
EFFICIENCY = 0.85  # guess
SPECIAL = 132 * 16 * 1.98e9  # of the special-function units
HBM = 4.8e12  # bytes
L2 = 5.5e12
BFLOAT16 = 790e12  # operations
# seconds on the device of a kernel of next to no work, one after another: torch's, and one of ours
# that passes over little
TORCH_LAUNCH, LAUNCH = 1.2e-6, 2e-6
# seconds on the host of an operation of torch, and of a kernel of ours
HOST = {"torch": 5e-6, "triton": 9e-6, "cuda": 3e-6}

PREDICTED = ROOT / "bench" / "results" / "model" / "h200.csv"
KEY = ("row", "backend", "kernel")


@dataclass(frozen=True)
class Work:
    """All launches of one kernel in a training step."""

    kernel: str
    calls: int
    elements: float = 0.0  # what slots are counted for
    slots: float = 0.0  # instructions of a lane for an element
    special: float = 0.0  # of them on the special-function unit
    hbm: float = 0.0  # bytes
    l2: float = 0.0
    flops: float = 0.0  # on tensor cores

    @property
    def pipes(self) -> dict[str, float]:
        """Seconds of each pipe."""
        return {
            "issue": self.elements * self.slots / (ISSUE * EFFICIENCY),
            "special": self.elements * self.special / SPECIAL,
            "memory": self.hbm / HBM,
            "L2": self.l2 / L2,
            "tensor cores": self.flops / BFLOAT16,
        }

    @property
    def launches(self) -> float:
        """Seconds that starting it so often takes on the device."""
        return self.calls * (TORCH_LAUNCH if self.kernel.startswith("aten::") else LAUNCH)

    @property
    def us(self) -> float:
        """The longest pipe, and its launches."""
        return 1e6 * (max(self.pipes.values()) + self.launches)

    @property
    def binds(self) -> str:
        """What it waits for."""
        pipes = self.pipes | {"launches": self.launches}
        return max(pipes, key=pipes.__getitem__)


def host_us(works: list[Work], backend: str) -> float:
    """Microseconds that the host takes to launch them all."""
    of_torch = sum(work.calls for work in works if work.kernel.startswith("aten::"))
    ours = sum(work.calls for work in works) - of_torch
    return 1e6 * (of_torch * HOST["torch"] + ours * HOST[backend])


def step_us(works: list[Work], backend: str, mode: str = "full_graph") -> float:
    """A training step: the kernels one after another, or the host where that takes longer."""
    device = sum(work.us for work in works)
    return device if mode == "full_graph" else max(device, host_us(works, backend))


NUMBERS = [field.name for field in fields(Work) if field.name != "kernel"]
COLUMNS = (*KEY, *NUMBERS, "us", "binds", "triton", "nvcc")


def rows(label: str, backend: str, works: list[Work]) -> list[dict[str, str]]:
    """As they stand in the file."""
    found = []
    for work in works:
        numbers = {
            name: results.significant(value, 4)
            for name, value in asdict(work).items()
            if name in NUMBERS
        }
        row = {"row": label, "backend": backend, "kernel": work.kernel, **numbers}
        found.append({**row, "us": results.significant(work.us, 4), "binds": work.binds})
    return found


@cache
def predicted(path: Path = PREDICTED) -> dict[tuple[str, str], list[Work]]:
    """(row, backend) -> the kernels of its step, as the model has them; empty without the file."""
    found: dict[tuple[str, str], list[Work]] = {}
    for row in results.read(path):
        numbers = {name: float(row[name]) for name in NUMBERS}
        work = Work(row["kernel"], **{**numbers, "calls": int(numbers["calls"])})
        found.setdefault((row["row"], row["backend"]), []).append(work)
    return found


def predicted_ms(label: str, backend: str, mode: str) -> float | None:
    """A training step of a row; None where the model has none, or for another mode."""
    works = predicted().get((label, backend))
    if not works or mode not in ("full", "full_graph"):
        return None
    return step_us(works, backend, mode) / 1e3
