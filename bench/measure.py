"""Measures one case: all its providers in turns on the CPU, one after the other on a GPU."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter

import torch

from bench import gpu_timer, machine
from bench.case import Case
from bench.floors import Rates, element_ns, floor_seconds, gpu_floor_seconds
from bench.inputs import Inputs, make_inputs
from bench.memory import peak_bytes
from bench.registry import Benchmark, Provider
from bench.results import significant
from bench.timer import Step, Times, race, step

MEMORY_SHARE = 0.85  # of a GPU's free memory: the most that a provider may be estimated to need


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    seconds: float = 1.0  # of calls of each provider
    rounds: int = 10
    memory: bool = True

    @classmethod
    def quick(cls) -> "Effort":
        """Enough to see that everything runs."""
        return cls(seconds=0.05, rounds=3, memory=False)


def measure(
    benchmark: Benchmark,
    case: Case,
    mode: str,
    effort: Effort,
    providers: tuple[Provider, ...] | None = None,
) -> list[dict[str, str]]:
    """One row for each provider; a provider that cannot run gives a row with the reason."""
    load = significant(machine.load(), 2)
    rows, steps = {}, {}
    for provider in providers or benchmark.providers:
        reason = provider.reason_to_skip(case)
        row = {**identity(case, mode, provider), **machine.environment(), "load": load}
        rows[provider.name] = {**row, "skipped": reason or ""}
        if reason is None:
            inputs = make_inputs(case)
            made = step(provider.forward(inputs), inputs.leaves(), mode)
            steps[provider.name] = made
            if provider.compiled:
                rows[provider.name]["compile_s"] = _first_call(made)
    times = race(steps, effort.seconds, effort.rounds)
    ours = times.get("ours")
    for name, found in times.items():
        row = rows[name]
        row |= _columns(found, floor_seconds(case, mode))
        row["ratio_to_ours"] = significant(found.p50 / ours.p50 if ours else None)
        row["element_ns"] = significant(element_ns(case, found.p50))
        if effort.memory and mode == "full":
            peak = peak_bytes(case, name)
            row["peak_mb"] = significant(None if peak is None else peak / 1e6)
    return list(rows.values())


def measure_on_gpu(
    case: Case,
    modes: Callable[[str], tuple[str, ...]],  # of a provider, by its name
    providers: Iterable[Provider],
    rates: Rates | None,
    seconds: float,
    look: Callable[[Provider, Step], None] = lambda provider, step: None,
) -> Iterator[dict[str, str]]:
    """One row for each provider and mode, when it is there; the environment is the caller's.

    `look` gets each whole step after it was timed.
    """
    inputs = make_inputs(case, device="cuda")
    limit = MEMORY_SHARE * torch.cuda.mem_get_info()[0]
    for provider in providers:
        inputs.module = None
        reason = provider.skip(case) or provider.too_large(case, limit)
        for mode in modes(provider.name):
            row = identity(case, mode, provider)
            if reason is None:
                try:
                    made = _gpu_step(provider, inputs, mode, row)
                    row |= _gpu_figures(inputs, made, mode, rates, seconds)
                    if mode == "full":
                        look(provider, made)
                except Exception as error:  # out of memory, no compiler, what a graph cannot hold
                    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            yield {**row, "skipped": reason or ""}
        torch.cuda.empty_cache()


def _gpu_step(provider: Provider, inputs: Inputs, mode: str, row: dict[str, str]) -> Step:
    """The call to time; what compiling took is noted in the row."""
    made = step(provider.forward(inputs), inputs.leaves(), mode.removesuffix("_graph"))
    if provider.compiled:
        row["compile_s"] = _first_call(made)
    return gpu_timer.replayed(made) if mode.endswith("_graph") else made


def _gpu_figures(
    inputs: Inputs, made: Step, mode: str, rates: Rates | None, seconds: float
) -> dict[str, str]:
    found, times = {}, gpu_timer.time_step(made, seconds)
    if mode == "full":
        found["peak_mb"] = significant(gpu_timer.peak_bytes(made, inputs.leaves()) / 1e6)
    return found | _columns(times, gpu_floor_seconds(inputs.case, mode, rates))


def _first_call(made: Step) -> str:
    """Seconds of the call that compiles; the next one is what it takes to run."""
    start = perf_counter()
    made.run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return significant(perf_counter() - start, 3)


def identity(case: Case, mode: str, provider: Provider) -> dict[str, str]:
    """What names a row, and its sizes."""
    sizes = {axis: str(getattr(case, axis) or "") for axis in ("M", "N", "C", "K", "D", "L")}
    named = {"op": case.op, "case": case.name, "mode": mode, "provider": provider.name}
    return {**named, **sizes, "dtype": case.dtype, "donors": case.donors, "start": case.start}


def _columns(times: Times, floor: float | None) -> dict[str, str]:
    return {
        "p20_ms": significant(times.p20 * 1e3),
        "p50_ms": significant(times.p50 * 1e3),
        "p80_ms": significant(times.p80 * 1e3),
        "calls": str(times.calls),
        "floor_fraction": significant(floor / times.p50 if floor else None),
    }
