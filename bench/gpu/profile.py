"""Which kernels one call starts, and how long each takes: a profile beside the model's figures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch

from bench import results
from bench.model.figures import Work
from bench.results import ENVIRONMENT, Row, significant
from bench.timer import Step

PROFILE = "profile.csv"
NAMES = ("op", "case", "provider", "kernel")
COLUMNS = (*NAMES, "calls", "us", "predicted_us", "slots", "special", "bytes", *ENVIRONMENT)


def short(name: str) -> str:
    """A kernel's own name, without namespaces, types and arguments."""
    found = re.findall(r"\w+_kernel\b", name)
    return found[0] if found else name[:80]


def kernels(step: Step) -> dict[str, tuple[int, float]]:
    """Calls and microseconds of each kernel of one call, by its name."""
    prepared = step.setup()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        kept = step.call(prepared)
        torch.cuda.synchronize()
    del kept
    found: dict[str, tuple[int, float]] = {}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            calls, us = found.get(short(event.name), (0, 0.0))
            found[short(event.name)] = calls + 1, us + event.time_range.elapsed_us()
    return found


def lines(
    case: Row, found: dict[str, tuple[int, float]], expected: Iterable[Work]
) -> list[dict[str, str]]:
    """A row for each kernel, the slowest first; and for what was expected and did not run."""
    works = {work.kernel: work for work in expected}
    named = {**found, **{name: (0, 0.0) for name in works if name not in found}}
    made = []
    for name, (calls, us) in sorted(named.items(), key=lambda item: -item[1][1]):
        row = {**case, "kernel": name, "calls": str(calls), "us": significant(us, 4)}
        if work := works.get(name):
            row |= {
                "predicted_us": significant(work.us, 3),
                "slots": significant(work.slots, 3),
                "special": significant(work.special, 3),
                "bytes": significant(work.hbm + work.l2, 3),
            }
        made.append(row)
    return made


def write(path: Path, rows: list[dict[str, str]], stamp: Row) -> None:
    """Add them to the file, in the place of an earlier profile of the same."""
    results.merge(path, [{**stamp, **row} for row in rows], COLUMNS, NAMES)
