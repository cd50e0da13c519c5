"""The sizes that are timed on a GPU, who is timed, and what ours must reach there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bench.case import Case
from bench.goals import Goal, TimedRow
from bench.inputs import Inputs
from bench.registry import Provider, benchmarks
from mcr_fast.ops._backend import backends, shared_memory
from mcr_fast.ops._limits import Call, Pairs
from mcr_fast.ops.registry import OPS

ACCELERATED = ("cuda", "triton")  # backends that have kernels of their own for CUDA tensors

MIPD = Case("permuted_divergence", N=4096, C=1000, K=32, donors="uniform", start="contributions")
PUBLISHED = replace(MIPD, N=32, D=512, C=6, start="latents")
CONTRASTIVE = Case("nt_xent", N=16384, D=512, C=1000, dtype="bfloat16")
ROWS_CASE = Case("row_divergence", N=4096, C=1000, K=32, M=0, dtype="bfloat16")


def _mipd(label: str, case: Case, *milliseconds: float) -> TimedRow:
    faster = (Goal("eager", 10), Goal("compile", 4))
    goals = (*(Goal("ms", ms) for ms in milliseconds), *faster)
    return TimedRow(f"MIPD {label}", case, goals, graph=True)


WIDE = replace(MIPD, N=32768, C=174)
# the goals of Triton's kernels and those of the CUDA C++ ones, whichever of them ours are
REPLAYED = (Goal("ms", 0.015, "full_graph"), Goal("ms", 0.012, "full_graph"))
TIMED_ROWS = (
    _mipd("N=4096 C=1000 K=32 uniform", MIPD, 0.55, 0.50),
    _mipd("N=4096 C=1000 K=32 cyclic", replace(MIPD, donors="cyclic"), 0.20, 0.18),
    _mipd("N=32768 C=174 K=32 uniform", WIDE, 0.75, 0.70),
    _mipd("N=32768 C=174 K=32 cyclic", replace(WIDE, donors="cyclic"), 0.25, 0.22),
    TimedRow(
        "MIPD N=4096 C=100 exhaustive",
        replace(MIPD, C=100, K=0, donors="exhaustive"),
        (Goal("ms", 3), Goal("ms", 2)),
        graph=True,
    ),
    TimedRow(
        "MIPD published default N=32 C=6 K=32, from latents",
        PUBLISHED,
        (*REPLAYED, Goal("released", 20, "full_graph")),
        graph=True,
        quick=True,
    ),
    TimedRow(
        "MIPD published default N=32 C=6 K=32, kernels alone",
        replace(PUBLISHED, D=0, start="contributions"),
        REPLAYED,
        graph=True,
        quick=True,
    ),
    TimedRow(
        "MCRLoss published default N=32 C=6 K=32, eager launch",
        replace(PUBLISHED, op="mcr_loss", donors="drawn"),
        (Goal("ms", 0.15),),
        quick=True,
    ),
    TimedRow(
        "nt_xent L=32768 D=512 bfloat16",
        CONTRASTIVE,
        (Goal("ms", 5.5), Goal("compile", 3), Goal("MB", 300)),
    ),
    TimedRow(
        "nt_xent L=131072 D=512 bfloat16",
        replace(CONTRASTIVE, N=65536),
        (Goal("ms", 90),),
    ),
    TimedRow(
        "row_divergence R=131072 C=1000 bfloat16",
        ROWS_CASE,
        (Goal("copy", 0.7), Goal("eager", 3)),
    ),
)


# what has no entry of its own in `backends()` goes where this op does
LIKE = {"gather_add": "row_divergence", "mcr_loss": "permuted_divergence"}


def serving(op: str) -> list[str]:
    """The backends with kernels for CUDA tensors here, the one that None takes first."""
    status = backends()[LIKE.get(op, op)]
    found = [name for name in ACCELERATED if name not in status["unavailable"]]
    return sorted(found, key=lambda name: name != status["serves"]["cuda"])


def call_of(case: Case) -> Call:
    """What decides which backends take a case."""
    if case.op in ("nt_xent", "sup_con"):
        return Call(case.L, case.D)
    if case.op in ("row_divergence", "reconstruction_loss"):
        return Call(case.C)
    permutations = case.N - 1 if case.donors == "exhaustive" else case.K
    donors = {"uniform": "table", "drawn": "cyclic"}.get(case.donors, case.donors)
    subsets = tuple(1 << m for m in range(case.M))
    pairs = Pairs(case.N, permutations, subsets, "jsd", donors, weighs=False)
    shared = shared_memory(torch.device("cuda"))
    return Call(case.C, modalities=case.M, pairs=pairs, shared=shared)


def taking(case: Case) -> list[str]:
    """Those of `serving` that take a case."""
    op = LIKE.get(case.op, case.op)
    return [name for name in serving(case.op) if OPS[op].refusal(name, call_of(case)) is None]


def liger(inputs: Inputs) -> Tensor:
    """Liger's Jensen-Shannon divergence, which wants log-probabilities and all clean rows."""
    from liger_kernel.transformers import LigerJSD

    clean = inputs.clean.log_softmax(-1).index_select(0, inputs.rows)
    return LigerJSD(beta=0.5)(inputs.perturbed.log_softmax(-1), clean)


def no_liger(case: Case) -> str | None:
    """Why Liger cannot run here, None if it can."""
    missing = importlib.util.find_spec("liger_kernel") is None
    return "liger_kernel is not installed" if missing else None


def providers(row: TimedRow) -> list[Provider]:
    """Everybody who runs a row, torch.compile last: it may have to be stopped."""
    benchmark = benchmarks()[row.case.op]
    ours = benchmark.provider("ours").run
    backends = taking(row.case)
    named = [Provider(f"ours_{name}", partial(ours, backend=name)) for name in backends]
    if row.step_only:
        found = [*sorted(named, key=lambda p: p.name), benchmark.provider("eager")]
    else:
        found = [Provider("ours", ours)] if backends else []
        # beside what is taken when none is asked for; the whole step has no single backend
        found += named if len(backends) > 1 and row.case.op != "mcr_loss" else []
        found += [p for p in benchmark.providers[2:] if not p.compiled]
        if row.case.op == "row_divergence":
            found.append(Provider("liger", liger, lambda case: case.pair_bytes(4), no_liger))
    return [*found, benchmark.provider("compile")]


# which providers a phase times: they run one phase after the other, ours first
WHO: dict[str, Callable[[Provider], bool]] = {
    "ours": lambda p: p.name.startswith("ours"),
    "peers": lambda p: not p.name.startswith("ours") and not p.compiled,
    "compile": lambda p: p.compiled,
    "ours and eager": lambda p: p.name.startswith("ours") or p.name == "eager",
}


def chosen(row: TimedRow, who: str) -> list[Provider]:
    """The providers of a row that a phase times."""
    return [provider for provider in providers(row) if WHO[who](provider)]


def backend_of(row: TimedRow, provider: str) -> str | None:
    """Whose kernels one of ours runs; None for the others."""
    if provider.startswith("ours_"):
        return provider.removeprefix("ours_")
    found = taking(row.case)
    return found[0] if provider == "ours" and found else None
