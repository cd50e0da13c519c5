"""The figures that this version has to reach, each measured and judged."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from bench import machine
from bench.bench_nt_xent import TEMPERATURE
from bench.floors import element_ns
from bench.inputs import make_inputs
from bench.measure import Effort
from bench.memory import peak_bytes
from bench.registry import Case, benchmarks
from bench.results import significant
from bench.timer import Times, contestant, race
from bench.truth import errors

SMALL = Case("permuted_divergence", N=32, D=512, C=6, K=32, donors="uniform", start="latents")
LARGE = replace(SMALL, N=512, C=174)
EXHAUSTIVE = replace(SMALL, donors="exhaustive", K=0)
KERNEL = replace(LARGE, D=0, start="contributions")
CONTRASTIVE = Case("nt_xent", N=32, D=512, C=6)
DENSE = replace(CONTRASTIVE, N=2048, C=174)
LONG = replace(CONTRASTIVE, N=8192, C=174)
STEP = replace(SMALL, op="mcr_loss", donors="drawn")


@dataclass(frozen=True)
class Outcome:
    """One figure against its goal."""

    what: str
    goal: float
    measured: float
    unit: str = "x"
    at_least: bool = True
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.measured >= self.goal if self.at_least else self.measured <= self.goal

    def row(self) -> dict[str, str]:
        """As it stands in targets.csv."""
        sign = ">=" if self.at_least else "<="
        return {
            "what": self.what,
            "goal": f"{sign} {significant(self.goal)}",
            "measured": significant(self.measured, 3),
            "unit": self.unit,
            "passed": "pass" if self.passed else "missed",
            "detail": self.detail,
        }


def _race(entries: dict[str, tuple[Case, str]], mode: str, effort: Effort) -> dict[str, Times]:
    """Times of (case, provider) pairs in turns."""
    contestants = {}
    for name, (case, provider) in entries.items():
        inputs = make_inputs(case)
        forward = benchmarks()[case.op].provider(provider).forward(inputs)
        contestants[name] = contestant(forward, inputs.leaves(), mode)
    return race(contestants, effort.seconds, effort.rounds)


def _against(
    case: Case, goals: dict[str, tuple[str, float]], effort: Effort, label: str
) -> Iterator[Outcome]:
    """Our time against providers': {provider: (its name in words, goal)}."""
    entries = {name: (case, name) for name in ("ours", *goals)}
    times = _race(entries, "full", effort)
    for provider, (words, goal) in goals.items():
        theirs, ours = times[provider].p50, times["ours"].p50
        detail = f"{significant(ours * 1e3)} ms, {words} {significant(theirs * 1e3)} ms"
        yield Outcome(f"{label}, against {words}", goal, theirs / ours, detail=detail)


def mipd(effort: Effort) -> Iterator[Outcome]:
    """MIPD from latents against both other formulations."""
    for case, over_released, over_eager in ((SMALL, 100, 4), (LARGE, 400, 20)):
        label = f"MIPD N={case.N} C={case.C} K={case.K} D={case.D}"
        goals = {
            "released": ("the released formulation", over_released),
            "eager": ("best eager", over_eager),
        }
        yield from _against(case, goals, effort, label)


def exhaustive(effort: Effort) -> Iterator[Outcome]:
    """All pairs against as many sampled ones."""
    sampled = replace(SMALL, K=SMALL.N - 1)
    entries = {"exhaustive": (EXHAUSTIVE, "ours"), "sampled": (sampled, "ours")}
    times = _race(entries, "full", effort)
    full, part = times["exhaustive"].p50, times["sampled"].p50
    yield Outcome(
        "MIPD N=32 exhaustive, time of 31 sampled permutations",
        1.2,
        full / part,
        at_least=False,
        detail=f"{significant(full * 1e3)} ms, sampled {significant(part * 1e3)} ms",
    )


def contrastive(effort: Effort) -> Iterator[Outcome]:
    """NT-Xent against pytorch-metric-learning and the dense formulation, and its memory."""
    small = {"pml": ("pytorch-metric-learning", 200.0)}
    yield from _against(CONTRASTIVE, small, effort, "nt_xent L=64 D=512 C=6")
    for dtype, goal in (("float32", 1.8), ("bfloat16", 3.0)):
        dense = {"eager": ("dense eager", goal)}
        label = f"nt_xent L=4096 D=512 C=174 {dtype}"
        yield from _against(replace(DENSE, dtype=dtype), dense, effort, label)
    peak = peak_bytes(LONG, "ours")
    yield Outcome(
        "nt_xent L=16384 D=512, memory above inputs and gradients",
        150,
        float("nan") if peak is None else peak / 1e6,
        "MB",
        at_least=False,
        detail=f"one dense matrix is {significant(4e-6 * LONG.L**2)} MB",
    )


def step(effort: Effort) -> Iterator[Outcome]:
    """The whole regularizer of a training step at the published default."""
    label = "MCRLoss step N=32 C=6 K=32 D=512"
    words = "released MIPD + pytorch-metric-learning"
    times = _race({name: (STEP, name) for name in ("ours", "released")}, "full", effort)
    ours, theirs = times["ours"].p50, times["released"].p50
    detail = f"{significant(ours * 1e3)} ms, {words} {significant(theirs * 1e3)} ms"
    yield Outcome(f"{label}, against {words}", 80, theirs / ours, detail=detail)
    yield Outcome(label, 1.5, ours * 1e3, "ms", at_least=False)


def row_cost(effort: Effort) -> Iterator[Outcome]:
    """The fused forward of one row, per class."""
    times = _race({"ours": (KERNEL, "ours")}, "fwd", effort)
    seconds = times["ours"].p50
    yield Outcome(
        "MIPD forward C=174, per (pair, class) element and core",
        0.6,
        element_ns(KERNEL, seconds) or float("nan"),
        "ns",
        at_least=False,
        detail=f"N=512 K=32 from contributions, {significant(seconds * 1e3)} ms; "
        "both subsets' pairs counted",
    )


def accuracy(effort: Effort) -> Iterator[Outcome]:
    """float32 against the float64 reference at every size above."""
    given = replace(STEP, donors="uniform")
    for case in (SMALL, LARGE, EXHAUSTIVE, KERNEL, CONTRASTIVE, DENSE, LONG, given):
        benchmark = benchmarks()[case.op]
        loss, gradient = errors(
            benchmark.provider("ours"), benchmark.provider("reference"), case, TEMPERATURE
        )
        label = f"{case.op} {case.name}"
        yield Outcome(f"{label}: loss, relative error", 2e-6, loss, "", at_least=False)
        yield Outcome(f"{label}: gradients, relative L2", 1e-5, gradient, "", at_least=False)


def growth(effort: Effort) -> Iterator[Outcome]:
    """What doubling one size does to the time, in the same run."""
    for axis in "KNC":
        ratios, details = [], []
        for base in (replace(LARGE, N=256, C=101), LARGE):
            doubled = replace(base, **{axis: 2 * getattr(base, axis)})
            times = _race({"base": (base, "ours"), "doubled": (doubled, "ours")}, "full", effort)
            was, now = times["base"].p50 * 1e3, times["doubled"].p50 * 1e3
            if was >= 1:
                ratios.append(now / was)
                details.append(
                    f"N={base.N} C={base.C}: {significant(was)} -> {significant(now)} ms"
                )
        yield Outcome(
            f"MIPD, doubling {axis} above 1 ms",
            2.2,
            max(ratios, default=float("nan")),
            at_least=False,
            detail="; ".join(details) or "every size stays below 1 ms",
        )


TARGETS: tuple[Callable[[Effort], Iterator[Outcome]], ...] = (
    *(mipd, exhaustive, contrastive, step, row_cost, accuracy, growth),
)


def run_targets(effort: Effort) -> Iterator[dict[str, str]]:
    """Every figure as a row, as soon as it is there."""
    for target in TARGETS:
        load = significant(machine.load(), 2)
        for outcome in target(effort):
            yield {**outcome.row(), **machine.environment(), "load": load}
