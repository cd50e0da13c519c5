"""Measures one case: all its providers against each other, in every mode asked for."""

from dataclasses import dataclass
from time import perf_counter

from bench import machine
from bench.floors import element_ns, floor_seconds
from bench.inputs import make_inputs
from bench.memory import peak_bytes
from bench.registry import Benchmark, Case, Provider
from bench.results import significant
from bench.timer import Contestant, Times, contestant, race


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
    load = machine.load()
    contestants: dict[str, Contestant] = {}
    skipped: dict[str, str] = {}
    compile_seconds: dict[str, float] = {}
    chosen = providers or benchmark.providers
    for provider in chosen:
        reason = provider.reason_to_skip(case)
        if reason:
            skipped[provider.name] = reason
            continue
        inputs = make_inputs(case)
        forward = provider.forward(inputs)
        contestants[provider.name] = contestant(forward, inputs.leaves(), mode)
        if provider.compiled:
            # the first call compiles, the second one is what it takes to run
            start = perf_counter()
            contestants[provider.name].call()
            compile_seconds[provider.name] = perf_counter() - start
    times = race(contestants, effort.seconds, effort.rounds)
    ours = times.get("ours")
    rows = []
    for provider in chosen:
        row = {**identity(case, mode, provider), **machine.environment()}
        row["load"] = significant(load, 2)
        row["skipped"] = skipped.get(provider.name, "")
        row["compile_s"] = significant(compile_seconds.get(provider.name), 3)
        if provider.name in times:
            row |= _figures(case, mode, times[provider.name], ours)
            if effort.memory and mode == "full":
                peak = peak_bytes(case, provider.name)
                row["peak_mb"] = "" if peak is None else significant(peak / 1e6)
        rows.append(row)
    return rows


def identity(case: Case, mode: str, provider: Provider) -> dict[str, str]:
    """What names a row, and its sizes."""
    sizes = {axis: str(getattr(case, axis) or "") for axis in ("M", "N", "C", "K", "D", "L")}
    named = {"op": case.op, "case": case.name, "mode": mode, "provider": provider.name}
    return {**named, **sizes, "dtype": case.dtype, "donors": case.donors, "start": case.start}


def _figures(case: Case, mode: str, times: Times, ours: Times | None) -> dict[str, str]:
    floor = floor_seconds(case, mode)
    return {
        "p20_ms": significant(times.p20 * 1e3),
        "p50_ms": significant(times.p50 * 1e3),
        "p80_ms": significant(times.p80 * 1e3),
        "calls": str(times.calls),
        "ratio_to_ours": significant(times.p50 / ours.p50 if ours else None),
        "element_ns": significant(element_ns(case, times.p50)),
        "floor_fraction": significant(floor / times.p50 if floor else None),
    }
