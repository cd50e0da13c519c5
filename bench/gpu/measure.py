"""Times some of ALL_ROWS: `python -m bench.gpu.measure FOLDER --who ours --rows 0 3`.

In a process of its own, which can be stopped: what it has measured by then is in the files, each
line before it is printed. Without `--who` it measures what the card can do.
"""

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from bench import results
from bench.floors import Rates
from bench.goals import TimedRow
from bench.gpu import profile
from bench.gpu.record import FIGURE_NAMES, FIGURES, TARGETS, TIMES
from bench.gpu.rows import TIMED_ROWS, WHO, backend_of, chosen
from bench.gpu.sizes import SIZE_ROWS
from bench.machine import gpu_environment
from bench.measure import measure_on_gpu
from bench.model.figures import predicted
from bench.registry import Provider
from bench.timer import Step

ALL_ROWS = (*TIMED_ROWS, *SIZE_ROWS)
PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """A GPU is not left busy by a process whose parent was killed."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def measure_card(folder: Path, seconds: float, stamp: dict[str, str]) -> None:
    """Floors and the approximations' errors, one by one."""
    from bench.gpu.probe import probe
    from bench.gpu_rates import measure_rates

    for figure in chain(measure_rates(seconds), probe()):
        results.merge(folder / TARGETS, [{**stamp, **figure}], FIGURES, FIGURE_NAMES)
        print(f"{figure['what']}: {figure['measured']} {figure['unit']}", flush=True)


def look_into(row: TimedRow, folder: Path, stamp: dict[str, str]) -> Callable[..., None]:
    """Profiles one call of each of ours into a file."""

    def look(provider: Provider, step: Step) -> None:
        backend = backend_of(row, provider.name)
        if backend is None:
            return
        named = {"op": row.case.op, "case": row.case.name, "provider": provider.name}
        try:
            found = profile.kernels(step)
        except Exception as error:  # of the profiler: the times count
            print(f"no profile of {row.label}: {error}", flush=True)
            return
        expected = predicted().get((row.label, backend), [])
        profile.write(folder / profile.PROFILE, profile.lines(named, found, expected), stamp)

    return look


def nobody_looks(provider: Provider, step: Step) -> None:
    """Profiles nothing."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--who", choices=WHO)
    parser.add_argument("--rows", type=int, nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--commit", default="")
    options = parser.parse_args()
    end_with_parent()
    stamp = gpu_environment(options.commit)
    if options.who is None:
        measure_card(options.folder, options.seconds, stamp)
    rates = Rates.read(options.folder / TARGETS)
    for row in map(ALL_ROWS.__getitem__, options.rows):
        providers = chosen(row, options.who)
        look = look_into(row, options.folder, stamp) if options.who == "ours" else nobody_looks
        measured = measure_on_gpu(row.case, row.modes_of, providers, rates, options.seconds, look)
        for line in measured:
            results.merge(options.folder / TIMES, [{**stamp, **line}])
            found = line["skipped"] or f"{line['p50_ms']} ms"
            print(f"{row.label}  {line['mode']}  {line['provider']}: {found}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
