"""Times some of ALL_ROWS: `python -m bench.gpu.measure FOLDER --rows 0 3 --rates RATES.json`.

In a process of its own, which can be stopped; what it has measured by then is in the files.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from time import perf_counter

import torch

from bench import machine, results
from bench.gpu_rates import Rates, bytes_moved, floor_seconds, measure_rates
from bench.gpu.rows import TIMED_ROWS, Goal, TimedRow, passes, providers
from bench.gpu.sizes import SIZE_ROWS, size_providers
from bench.gpu_timer import Times, peak_bytes, replayed, time_step, training_step
from bench.inputs import Inputs, make_inputs
from bench.measure import identity
from bench.registry import Case, Provider
from bench.results import Row, number, significant

TIMES = "times.csv"  # everything that was timed
ALL_ROWS = (*TIMED_ROWS, *SIZE_ROWS)
MEMORY_SHARE = 0.85  # of what is free: the most that a provider may be estimated to need


def environment(commit: str = "") -> dict[str, str]:
    """The columns of every row, with the GPU in the place of the processor.

    A copy of the tree without its history takes the commit that the caller names.
    """
    import triton

    found = machine.environment()
    major, minor = torch.cuda.get_device_capability()
    if not found["commit"]:
        found = {**found, "commit": commit, "dirty": "unknown"}
    capability = f"sm_{major}{minor}, triton {triton.__version__}"
    return {**found, "device": torch.cuda.get_device_name(), "capability": capability}


def measure_row(
    row: TimedRow, rates: Rates | None, seconds: float, wanted: Collection[str] = ()
) -> Iterator[dict[str, str]]:
    """One line for each provider (of those wanted, if any is named) and mode, when it is there."""
    inputs = make_inputs(row.case, device="cuda")
    limit = MEMORY_SHARE * torch.cuda.mem_get_info()[0]
    everybody = size_providers(row.case) if row.step_only else providers(row.case)
    for provider in everybody:
        if wanted and provider.name not in wanted:
            continue
        inputs.module = None
        reason = provider.skip(row.case) or provider.too_large(row.case, limit)
        # compiling takes longer than all else, and only a whole step has a goal against it
        for mode in row.modes[:1] if provider.compiled else row.modes:
            line = identity(row.case, mode, provider)
            if reason is None:
                try:
                    line |= _figures(provider, inputs, mode, rates, seconds)
                except Exception as error:  # out of memory, no compiler, what a graph cannot hold
                    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            yield {**line, "skipped": reason or ""}
        torch.cuda.empty_cache()


def _figures(
    provider: Provider, inputs: Inputs, mode: str, rates: Rates | None, seconds: float
) -> dict[str, str]:
    case, leaves = inputs.case, inputs.leaves()
    step = training_step(provider.forward(inputs), leaves, mode.removesuffix("_graph"))
    found = {}
    if provider.compiled:
        start = perf_counter()
        step.setup()
        step.call()
        torch.cuda.synchronize()
        found["compile_s"] = significant(perf_counter() - start, 3)
    if mode.endswith("_graph"):
        step = replayed(step)
    times = time_step(step, seconds)
    if mode == "full":
        found["peak_mb"] = significant(peak_bytes(step, leaves) / 1e6)
    return found | _time_columns(times, case, mode, rates)


def _time_columns(times: Times, case: Case, mode: str, rates: Rates | None) -> dict[str, str]:
    floor = floor_seconds(case, mode, rates) if rates else None
    return {
        "p20_ms": significant(times.p20 * 1e3),
        "p50_ms": significant(times.p50 * 1e3),
        "p80_ms": significant(times.p80 * 1e3),
        "calls": str(times.calls),
        "floor_fraction": significant(floor / times.p50 if floor else None),
    }


def with_ratios(lines: list[dict[str, str]]) -> list[dict[str, str]]:
    """Every provider's median over ours of the same case and mode."""
    medians = {results.key(line): number(line, "p50_ms") for line in lines}
    for line in lines:
        base = medians.get((line["op"], line["case"], line["mode"], "ours"))
        own = number(line, "p50_ms")
        line["ratio_to_ours"] = significant(own / base if own and base else None)
    return lines


def figure(goal: Goal, row: TimedRow, lines: list[Row], rates: Rates | None) -> float:
    """What a goal judges; NaN where it was not measured."""
    found = {
        line["provider"]: line
        for line in lines
        if (line["op"], line["case"], line["mode"]) == (row.case.op, row.case.name, goal.mode)
    }
    ours = number(found.get(goal.of, {}), "p50_ms")
    if ours is None:
        return math.nan
    if goal.against == "ms":
        return ours
    if goal.against == "MB":
        peak = number(found[goal.of], "peak_mb")
        return math.nan if peak is None else peak
    if goal.against == "copy":
        return bytes_moved(row.case, goal.mode) / (ours / 1e3 * rates.copy) if rates else math.nan
    theirs = number(found.get(goal.against, {}), "p50_ms")
    return math.nan if theirs is None else theirs / ours


UNITS = {"ms": "ms", "MB": "MB", "copy": "of copy bandwidth"}


def verdicts(rows: list[TimedRow], lines: list[Row], rates: Rates | None) -> list[dict[str, str]]:
    """Every goal as a row of targets.csv: pass, missed or not measured."""
    found = []
    for row in rows:
        for goal in row.goals:
            measured = figure(goal, row, lines, rates)
            judged = "pass" if passes(goal, measured) else "missed"
            against = f", against {goal.against}" if goal.against not in UNITS else ""
            replay = ", graph-replayed" if goal.mode == "full_graph" else ""
            found.append(
                {
                    "what": f"{row.label}{replay}{against}",
                    "goal": f"{'>=' if goal.at_least else '<='} {significant(goal.value)}",
                    "measured": "" if math.isnan(measured) else significant(measured, 3),
                    "unit": UNITS.get(goal.against, "x"),
                    "passed": "not measured" if math.isnan(measured) else judged,
                    "detail": "",
                }
            )
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="*", default=[])
    parser.add_argument("--rates", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--commit", default="")
    parser.add_argument("--providers", nargs="*", default=[], help="all if none is named")
    options = parser.parse_args()
    if not options.rates.exists():
        measure_rates(min(options.seconds, 0.3)).write(options.rates)
    rates = Rates.read(options.rates)
    for index in options.rows:
        row = ALL_ROWS[index]
        for line in measure_row(row, rates, options.seconds, options.providers):
            results.merge(options.folder / TIMES, [{**line, **environment(options.commit)}])
            print(f"{row.label}  {line['mode']}  {line['provider']}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
