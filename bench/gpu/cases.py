"""The inputs on which every backend is checked, by name; made on the CPU, small ones mostly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch

from bench.gpu.shared import contrastive, divergences
from bench.gpu.subjects import (
    ACTIVATIONS,
    Divergence,
    Embeddings,
    FusionStep,
    Reconstruction,
    Subject,
)

DIVERGENCES = divergences.DIVERGENCES
STRATEGIES = ("greedy", "independent", "collaborative")
CLEAN_PATHS = ("shared", "routed", "detached")
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class CheckCase:
    """One input by its name; `quick` ones run with --quick."""

    op: str
    name: str
    make: Callable[[], Subject]
    quick: bool = False
    poisoned: bool = False  # holds NaN or infinity: the results must be NaN
    backends: tuple[str, ...] = ("triton", "cuda")  # those it is for

    @property
    def key(self) -> str:
        """What names it among all."""
        return f"{self.op}/{self.name}"


def _pairs(name: str, *shape: int, options: dict | None = None, quick=False, **made) -> CheckCase:
    """permuted_divergence: [M, N, C] and what `make_batch` takes; options of the op."""
    options = dict(options or {})
    unequal = options.pop("unequal", False)
    scheme = made.pop("scheme", "cyclic")
    return CheckCase(
        "permuted_divergence",
        name,
        lambda: Divergence(divergences.make_batch(*shape, scheme, **made), options, unequal),
        quick,
    )


# M, N, C: aligned, ragged, two rows, one class, more than one tile of rows, a prime and every
# width of the table of configurations
PAIR_SHAPES = [
    *((2, 64, 8), (2, 9, 7), (2, 2, 1), (3, 5, 1), (2, 70, 3), (2, 19, 11), (2, 33, 28)),
    *((2, 65, 101), (2, 130, 174), (2, 40, 513), (2, 12, 1025), (2, 7, 2049), (2, 5, 4096)),
]
SCHEMES = [
    *(("table", False), ("table", True), ("cyclic", False), ("cyclic", True)),
    ("exhaustive", False),
]


def _permuted_divergence() -> Iterator[CheckCase]:
    for (m, n, c), scheme in zip(PAIR_SHAPES, itertools.cycle(("table", "cyclic")), strict=False):
        yield _pairs(f"M{m}_N{n}_C{c}_{scheme}", m, n, c, scheme=scheme, quick=c in (7, 174))
    for c, divergence in itertools.product((3, 33, 174, 1025), ("mse", "binary_jsd")):
        yield _pairs(f"C{c}_{divergence}", 2, 12, c, options={"divergence": divergence})
    for (scheme, own), divergence in itertools.product(SCHEMES, DIVERGENCES):
        name = f"{scheme}{'_own' if own else ''}_{divergence}"
        options = {"divergence": divergence}
        yield _pairs(name, 2, 12, 10, scheme=scheme, own=own, options=options)
        options |= {"exclude": "self", "strategy": "collaborative", "unequal": True}
        if divergence == "jsd":
            made = {"scheme": scheme, "own": own, "present": True, "weighted": True}
            yield _pairs(f"{name}_masked_M3", 3, 11, 10, options=options, **made)
    for strategy, clean_path in itertools.product(STRATEGIES, CLEAN_PATHS):
        options = {"strategy": strategy, "clean_path": clean_path}
        quick = strategy == "greedy" and clean_path == "routed"
        yield _pairs(f"{strategy}_{clean_path}", 3, 7, 6, options=options, quick=quick)
        options["unequal"] = True
        made = {"scheme": "table", "present": True}
        yield _pairs(f"{strategy}_{clean_path}_masked", 2, 9, 6, options=options, **made)
    for present, weighted in itertools.product((False, True), repeat=2):
        name = f"same_label{'_present' * present}{'_weighted' * weighted}"
        made = {"bias": False, "present": present, "weighted": weighted, "scheme": "table"}
        yield _pairs(name, 2, 20, 5, options={"exclude": "same_label"}, **made)
    for dtype, scheme in itertools.product(HALVES, ("table", "cyclic")):
        made = {"dtype": dtype, "scheme": scheme}
        yield _pairs(f"{str(dtype)[6:]}_{scheme}", 2, 50, 28, **made)
    single = {"subsets": "single", "clean_path": "routed"}
    yield _pairs("M8_single", 8, 20, 6, own=True, options=single)
    yield _pairs("permutations_in_parts", 2, 40, 6, count=33)
    for rows in (0, 1):
        yield _pairs(f"N{rows}", 2, rows, 5, scheme="exhaustive", quick=rows == 0)
    for scale in (8.0, 60.0, 1e4):
        yield _pairs(f"logits_{scale:g}", 2, 20, 66, scale=scale)
    yield _pairs("production_uniform", 2, 2048, 1000, scheme="table", count=4)
    yield _pairs("production_cyclic", 2, 2048, 1000, count=4)
    yield _pairs("production_bfloat16", 2, 4096, 174, count=8, dtype=torch.bfloat16)
    yield from _far_pairs()


# N, K, C with just the 2^20 elements in both subsets from which the CUDA C++ kernels take pairs
# that are far by themselves (docs/cost/permuted_divergence.md): one for each of their teams, by C
# and from 8192 rows on, and the last one they take
FAR_SHAPES = [
    *((4096, 22, 6), (1311, 20, 20), (701, 15, 50), (350, 15, 100), (8200, 2, 100)),
    *((257, 16, 128), (300, 11, 174), (129, 16, 256), (100, 14, 384), (64, 16, 512)),
    *((99, 7, 768), (75, 7, 1000), (64, 8, 1024)),
]


def _far_pairs() -> Iterator[CheckCase]:
    def case(name: str, n: int, k: int, c: int, *, options=None, **made) -> CheckCase:
        found = _pairs(f"far_{name}", 2, n, c, count=k, options=options, **made)
        return replace(found, backends=("cuda",))

    dtypes = itertools.cycle((torch.float32, *HALVES))
    for (n, k, c), scheme in itertools.product(FAR_SHAPES, ("table", "cyclic")):
        dtype = next(dtypes)
        name = f"N{n}_K{k}_C{c}_{scheme}_{str(dtype)[6:]}"
        yield case(name, n, k, c, scheme=scheme, dtype=dtype)
    # all pairs are left to the exact kernels, or some in most rows
    schemes = itertools.cycle(("cyclic", "table", "table", "cyclic"))
    for (n, k, c), (name, scale) in itertools.product(
        (FAR_SHAPES[1], FAR_SHAPES[6], FAR_SHAPES[11]), (("near", 0.01), ("mixed", 0.17))
    ):
        dtype, scheme = next(dtypes), next(schemes)
        name = f"{name}_N{n}_C{c}_{scheme}_{str(dtype)[6:]}"
        yield case(name, n, k, c, scheme=scheme, scale=scale, dtype=dtype)
    yield case("logits_60", 350, 15, 100, scheme="table", scale=60.0)  # powers underflow
    # more than one run of permutations, and more than one chunk of them
    yield case("exhaustive_N128_C33", 128, 0, 33, scheme="exhaustive")
    yield case("exhaustive_N3072_C2", 3072, 0, 2, scheme="exhaustive")
    masked = {"present": True, "weighted": True}
    options = {"exclude": "same_label", "strategy": "collaborative", "unequal": True}
    yield case("masked_table", 300, 11, 174, options=options, scheme="table", **masked)
    options = {"exclude": "self", "clean_path": "routed"}
    yield case("masked_cyclic", 701, 15, 50, options=options, scale=0.17, **masked)


def _row_divergence() -> Iterator[CheckCase]:
    def case(name: str, *shape: int, options=None, quick=False, **made) -> CheckCase:
        def make() -> Subject:
            return Divergence(divergences.make_rows(*shape, **made), options or {})

        return CheckCase("row_divergence", name, make, quick)

    shapes = [
        *((64, 16, 8), (7, 3, 7), (1, 1, 1), (9, 4, 1), (300, 40, 5), (90, 2, 31), (50, 9, 101)),
        *((60, 20, 174), (20, 5, 513), (9, 4, 1025), (5, 2, 2049), (3, 2, 4096)),
    ]
    for r, n, c in shapes:
        quick = c in (7, 174)
        yield case(f"R{r}_N{n}_C{c}", r, n, c, weighted=c % 2 == 1, quick=quick)
    for c, divergence in itertools.product((7, 101, 1025), ("mse", "binary_jsd")):
        yield case(f"C{c}_{divergence}", 40, 9, c, options={"divergence": divergence})
    for dtype in HALVES:
        yield case(str(dtype)[6:], 70, 20, 33, dtype=dtype, weighted=True)
    for shape in ((0, 4, 5), (0, 0, 5)):
        yield case(f"R0_N{shape[1]}", *shape)
    for scale in (60.0, 1e4):
        yield case(f"logits_{scale:g}", 30, 9, 66, scale=scale)
    yield case("production", 16384, 512, 1000)
    yield case("production_bfloat16", 16384, 512, 1000, dtype=torch.bfloat16)


def _contrastive(op: str) -> Iterator[CheckCase]:
    def case(name: str, *shape: int, dtype=torch.float32, quick=False, **rest) -> CheckCase:
        masked = rest.pop("masked", False)

        def make() -> Subject:
            x, labels, present = contrastive.make_rows(*shape, dtype)
            return Embeddings(op, x, labels, present if masked else None, **rest)

        return CheckCase(op, name, make, quick)

    # rows, width, classes (0: all classes distinct): aligned, ragged, one class, prime width, one
    # column, more than one tile
    shapes = [
        *((128, 64, 6), (65, 37, 6), (2, 3, 1), (40, 8, 1), (33, 1, 3), (300, 53, 7)),
        *((700, 64, 2), (64, 32, 0), (1500, 96, 11)),
    ]
    for rows, width, classes in shapes:
        quick = rows in (65, 300)
        name = f"L{rows}_D{width}_C{classes}"
        yield case(name, rows, width, classes, quick=quick)
        if rows > 60 and classes:
            yield case(f"{name}_masked_0.01", rows, width, classes, masked=True, temperature=0.01)
    for dtype, temperature in itertools.product(HALVES, (0.5, 0.03)):
        name = f"{str(dtype)[6:]}_{temperature}"
        yield case(name, 300, 48, 9, dtype=dtype, temperature=temperature, masked=True)
        yield case(f"{name}_D512", 1500, 512, 9, dtype=dtype, temperature=temperature)
    for rows in (0, 1):
        yield case(f"L{rows}", rows, 5, 2, quick=rows == 0)
    yield case("production", 4096, 512, 174)
    yield case("production_bfloat16", 4096, 512, 174, dtype=torch.bfloat16)
    # more than one stripe of rows in the CUDA C++ kernels, the last one short
    for dtype in (torch.float32, *HALVES):
        masked = dtype == torch.bfloat16
        yield case(f"stripes_{str(dtype)[6:]}", 6000, 64, 11, dtype=dtype, masked=masked)
    # products of float32 rows in tf32: held to what torch's own lose with that setting
    for name, shape in {"tf32": (1500, 96, 11), "stripes_tf32": (6000, 64, 11)}.items():
        yield case(name, *shape, precision="high")


def _reconstruction_loss() -> Iterator[CheckCase]:
    def case(rows: int, widths: tuple[int, ...], dtype: torch.dtype, quick: bool) -> CheckCase:
        def make() -> Subject:
            g = torch.Generator().manual_seed(0)
            drawn = (torch.randn(rows, d, generator=g).to(dtype) for d in (*widths, sum(widths)))
            *latents, reconstruction = drawn
            return Reconstruction(latents, reconstruction)

        name = f"N{rows}_D{'_'.join(map(str, widths))}_{str(dtype)[6:]}"
        return CheckCase("reconstruction_loss", name, make, quick)

    shapes = [
        *((8, (16, 16)), (7, (3, 17, 64)), (1, (1,)), (5, (0, 3)), (0, (3, 2)), (70, (37, 41))),
        *((3, (5000, 1)), (2048, (512, 512))),
    ]
    for dtype in (torch.float32, *HALVES):
        for rows, widths in shapes:
            yield case(rows, widths, dtype, quick=rows in (7, 0) and dtype == torch.float32)


def _gather_add() -> Iterator[CheckCase]:
    def case(name: str, shape: tuple[int, ...], activation: str, quick: bool = False) -> CheckCase:
        m, n, d, h, c, k = shape

        def make() -> Subject:
            g = torch.Generator().manual_seed(0)

            def normal(*size: int) -> torch.Tensor:
                return torch.randn(size, generator=g) / size[-1] ** 0.5

            latents = [torch.randn(n, d, generator=g) for _ in range(m)]
            weights = [*(normal(h, d) for _ in range(m)), normal(h), 2 * normal(c, h), normal(c)]
            donors = torch.rand(k, n, generator=g).argsort(1)
            labels = torch.randint(3, (n,), generator=g)
            return FusionStep(latents, weights, labels, donors, activation)

        return CheckCase("gather_add", name, make, quick)

    # M, N, D, H, C, K
    shapes = [(2, 32, 8, 16, 6, 4), (3, 19, 5, 33, 7, 2), (2, 40, 16, 600, 11, 3)]
    for shape, activation in itertools.product(shapes, ACTIVATIONS):
        name = f"M{shape[0]}_N{shape[1]}_H{shape[3]}_{activation}"
        yield case(name, shape, activation, quick=shape[1] < 40 and activation == "gelu")
    yield case("production", (2, 512, 512, 512, 174, 8), "relu")


def _not_finite(case: CheckCase, value: float) -> CheckCase:
    """The case with one element of its first tensor replaced."""

    def make() -> Subject:
        subject = case.make()
        first = subject.tensors()[0]
        first.view(-1)[first.numel() // 2] = value
        return subject

    name = f"{case.name}_{'nan' if math.isnan(value) else 'inf'}"
    return replace(case, name=name, make=make, poisoned=True)


@cache
def check_cases() -> dict[str, CheckCase]:
    """Every case by its key."""
    found = [
        *_permuted_divergence(),
        *_row_divergence(),
        *_contrastive("nt_xent"),
        *_contrastive("sup_con"),
        *_reconstruction_loss(),
        *_gather_add(),
    ]
    for op in dict.fromkeys(case.op for case in found):
        # the first case of an op is large enough, and stays finite elsewhere
        first = next(case for case in found if case.op == op)
        found += [_not_finite(first, value) for value in (math.nan, math.inf)]
    return {case.key: case for case in found}
