"""The figures that this version has to reach on a CPU, each measured and judged."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from bench import machine
from bench.bench_nt_xent import TEMPERATURE
from bench.case import Case
from bench.goals import Goal, TimedRow, outcome, verdicts
from bench.inputs import make_inputs
from bench.measure import Effort, measure
from bench.memory import peak_bytes
from bench.registry import benchmarks
from bench.results import significant
from bench.timer import race, step
from bench.truth import errors

SMALL = Case("permuted_divergence", N=32, D=512, C=6, K=32, donors="uniform", start="latents")
LARGE = replace(SMALL, N=512, C=174)
EXHAUSTIVE = replace(SMALL, donors="exhaustive", K=0)
KERNEL = replace(LARGE, D=0, start="contributions")
CONTRASTIVE = Case("nt_xent", N=32, D=512, C=6)
DENSE = replace(CONTRASTIVE, N=2048, C=174)
LONG = replace(CONTRASTIVE, N=8192, C=174)
STEP = replace(SMALL, op="mcr_loss", donors="drawn")

Outcomes = Iterator[dict[str, str]]

ROWS = (
    TimedRow("MIPD N=32 C=6 K=32 D=512", SMALL, (Goal("released", 100), Goal("eager", 4))),
    TimedRow("MIPD N=512 C=174 K=32 D=512", LARGE, (Goal("released", 400), Goal("eager", 20))),
    TimedRow("nt_xent L=64 D=512 C=6", CONTRASTIVE, (Goal("pml", 200),)),
    TimedRow("nt_xent L=4096 D=512 C=174 float32", DENSE, (Goal("eager", 1.8),)),
    TimedRow(
        "nt_xent L=4096 D=512 C=174 bfloat16",
        replace(DENSE, dtype="bfloat16"),
        (Goal("eager", 3),),
    ),
    TimedRow("MCRLoss step N=32 C=6 K=32 D=512", STEP, (Goal("released", 80), Goal("ms", 1.5))),
    TimedRow(
        "MIPD forward C=174, per (pair, class) element and core",
        KERNEL,
        (Goal("ns", 0.6, "fwd"),),
        note="N=512 K=32 from contributions, both subsets' pairs counted",
    ),
)


def timed(row: TimedRow, effort: Effort) -> Outcomes:
    """Times of ours, alone and against other formulations."""
    benchmark = benchmarks()[row.case.op]
    names = dict.fromkeys(["ours", *(goal.provider or "ours" for goal in row.goals)])
    providers = tuple(map(benchmark.provider, names))
    effort = replace(effort, memory=False)
    yield from verdicts([row], measure(benchmark, row.case, row.goals[0].mode, effort, providers))


def _medians(cases: list[Case], effort: Effort) -> list[float]:
    """Milliseconds of our training step on each, in turns."""
    steps = {}
    for case in cases:
        inputs = make_inputs(case)
        forward = benchmarks()[case.op].provider("ours").forward(inputs)
        steps[case.name] = step(forward, inputs.leaves(), "full")
    return [times.p50 * 1e3 for times in race(steps, effort.seconds, effort.rounds).values()]


def exhaustive(effort: Effort) -> Outcomes:
    """All pairs against as many sampled ones."""
    full, part = _medians([EXHAUSTIVE, replace(SMALL, K=SMALL.N - 1)], effort)
    yield outcome(
        "MIPD N=32 exhaustive, time of 31 sampled permutations",
        1.2,
        full / part,
        at_least=False,
        detail=f"{significant(full)} ms, sampled {significant(part)} ms",
    )


def memory(effort: Effort) -> Outcomes:
    """What the contrastive term takes where a dense matrix is large."""
    peak = peak_bytes(LONG, "ours")
    yield outcome(
        "nt_xent L=16384 D=512, memory above inputs and gradients",
        150,
        float("nan") if peak is None else peak / 1e6,
        "MB",
        at_least=False,
        detail=f"one dense matrix is {significant(4e-6 * LONG.L**2)} MB",
    )


def accuracy(effort: Effort) -> Outcomes:
    """float32 against the float64 reference at every size above."""
    given = replace(STEP, donors="uniform")
    for case in (SMALL, LARGE, EXHAUSTIVE, KERNEL, CONTRASTIVE, DENSE, LONG, given):
        provider = benchmarks()[case.op].provider
        loss, gradient = errors(provider("ours"), provider("reference"), case, TEMPERATURE)
        label = f"{case.op} {case.name}"
        yield outcome(f"{label}: loss, relative error", 2e-6, loss, "", at_least=False)
        yield outcome(f"{label}: gradients, relative L2", 1e-5, gradient, "", at_least=False)


def growth(effort: Effort) -> Outcomes:
    """What doubling one size does to the time, in the same run."""
    for axis in "KNC":
        ratios, details = [], []
        for base in (replace(LARGE, N=256, C=101), LARGE):
            doubled = replace(base, **{axis: 2 * getattr(base, axis)})
            was, now = _medians([base, doubled], effort)
            if was >= 1:
                ratios.append(now / was)
                times = f"{significant(was)} -> {significant(now)} ms"
                details.append(f"N={base.N} C={base.C}: {times}")
        yield outcome(
            f"MIPD, doubling {axis} above 1 ms",
            2.2,
            max(ratios, default=float("nan")),
            at_least=False,
            detail="; ".join(details) or "every size stays below 1 ms",
        )


def run_targets(effort: Effort) -> Iterator[dict[str, str]]:
    """Every figure as a row, as soon as it is there."""
    rows = (partial(timed, row) for row in ROWS)
    for target in (*rows, exhaustive, memory, accuracy, growth):
        load = significant(machine.load(), 2)
        for row in target(effort):
            yield {**row, **machine.environment(), "load": load}
