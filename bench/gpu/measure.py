"""Times some of ALL_ROWS: `python -m bench.gpu.measure FOLDER --rates RATES.json --rows 0 3`.

In a process of its own, which can be stopped; what it has measured by then is in the files.
"""

import argparse
import sys
from pathlib import Path

from bench import results
from bench.floors import Rates
from bench.gpu.rows import TIMED_ROWS, providers
from bench.gpu.sizes import SIZE_ROWS
from bench.machine import gpu_environment
from bench.measure import measure_on_gpu

TIMES = "times.csv"  # everything that was timed
ALL_ROWS = (*TIMED_ROWS, *SIZE_ROWS)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rates", type=Path, required=True, help="measured if there is no file")
    parser.add_argument("--rows", type=int, nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--commit", default="")
    parser.add_argument("--providers", nargs="*", default=[], help="all if none is named")
    options = parser.parse_args()
    if not options.rates.exists():
        from bench.gpu_rates import measure_rates

        measure_rates(min(options.seconds, 0.3)).write(options.rates)
    rates = Rates.read(options.rates)
    for row in map(ALL_ROWS.__getitem__, options.rows):
        chosen = [p for p in providers(row) if not options.providers or p.name in options.providers]
        for line in measure_on_gpu(row.case, row.modes, chosen, rates, options.seconds):
            results.merge(options.folder / TIMES, [{**line, **gpu_environment(options.commit)}])
            print(f"{row.label}  {line['mode']}  {line['provider']}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
