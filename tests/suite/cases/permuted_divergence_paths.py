"""permuted_divergence: paths of the CUDA library that small problems do not take by themselves."""

from collections.abc import Iterator
from functools import partial
from itertools import cycle, product

import torch
from divergences import DTYPES, Batch

from mcr_fast._names import DIVERGENCES
from suite import behaviour, checks
from suite.cases import Case, named, pairwise
from suite.cases.permuted_divergence import (
    BUSY,
    CLEAN_PATHS,
    CYCLIC,
    EXHAUSTIVE,
    LARGE_PATH,
    OWN_TABLE,
    PATHS,
    SCHEMES,
    STRATEGIES,
    TABLE,
    pairs,
)

# N, K, C with just the 2^20 elements in both subsets from which the CUDA C++ kernels take pairs
# that are far by themselves (docs/math/permuted_divergence.md): one for each of their teams, by C
# and by whether the rows fill a GPU, and the last one they take
FAR_SHAPES = [
    *((4096, 22, 6), (1311, 20, 20), (701, 15, 50), (350, 15, 100), (8200, 2, 100)),
    *((257, 16, 128), (300, 11, 174), (129, 16, 256), (100, 14, 384), (64, 16, 512)),
    *((99, 7, 768), (75, 7, 1000), (64, 8, 1024), (4096, 1, 130), (2048, 1, 258)),
]


def far_pairs() -> Iterator[Case]:
    def case(n: int, k: int, c: int, scheme: tuple[str, bool], **rest) -> Case:
        return pairs("far", (2, n, c), scheme, count=k, backends=("cuda",), **rest)

    dtypes, schemes = cycle(DTYPES[:3]), cycle((CYCLIC, TABLE))
    for shape, scheme in zip(FAR_SHAPES, schemes, strict=False):
        yield case(*shape, scheme, dtype=next(dtypes), thorough=shape[2] in (50, 1000))
    # all pairs are left to the exact kernels, or some in most rows
    schemes = cycle((CYCLIC, TABLE, TABLE, CYCLIC))
    for shape, scale in product(FAR_SHAPES[1:12:5], (0.01, 0.17)):
        yield case(*shape, next(schemes), scale=scale, dtype=next(dtypes))
    yield case(350, 15, 100, TABLE, scale=60.0)  # powers underflow
    # more than one run of permutations, and more than one chunk of them
    yield case(128, 0, 33, EXHAUSTIVE)
    yield case(3072, 0, 2, EXHAUSTIVE)
    masked = {"present": True, "weighted": True}
    rest = {"exclude": "same_label", "strategy": "collaborative", "factor": None}
    yield case(300, 11, 174, TABLE, **rest, **masked)
    yield case(701, 15, 50, CYCLIC, exclude="self", clean_path="routed", scale=0.17, **masked)


def own_donors(x: Batch) -> Batch:
    """Some permutations leave every row where it is; two rows are near each other."""
    x.donors[0, 0] = x.donors[0, 3] = torch.arange(9)
    x.contributions[:, 7] = x.contributions[:, 2]
    return x


def identity(x: Batch) -> Batch:
    x.donors[:] = torch.arange(9)
    x.contributions[0, 3, 5] = torch.nan
    return x


def emulated() -> Iterator[Case]:
    """Small twins of what takes the CUDA library's other paths on a GPU."""
    case = partial(pairs, backends=("cuda",), here=("cuda",))
    # csrc's teams: lanes by the number of classes
    teams = (7, 174, 1, 29, 50, 101, 250, 400, 600, 1025)
    for few, (c, d, scheme, factor) in pairwise(teams, DIVERGENCES, (TABLE, CYCLIC), (1.0, None)):
        made = {"count": 2, "divergence": d, "factor": factor, "emulator": BUSY}
        yield case("busy", (2, 3, c), scheme, quick=few and c in (7, 174), **made)
    masked = {"present": True, "weighted": True, "exclude": "same_label", "factor": None}
    for _, (c, d, exclude) in pairwise((6, 29, 50, 101, 174), DIVERGENCES, ("none", "self")):
        few = {"count": 16, "present": True, "divergence": d, "exclude": exclude}
        few["factor"] = None if exclude == "self" else -2.5
        yield case("few_rows", (2, 9, c), TABLE, **few)
        yield case("few_rows_large", (2, 9, c), TABLE, emulator=LARGE_PATH, **few)
    for few, (scheme, d, strategy, clean_path, all_of_it) in pairwise(
        SCHEMES, DIVERGENCES, STRATEGIES, CLEAN_PATHS, (False, True)
    ):
        made = {"divergence": d, "strategy": strategy, "clean_path": clean_path, "quick": few}
        made |= masked if all_of_it else {}
        yield case("large", (3, 7, 11), scheme, count=3, emulator=LARGE_PATH, **made)
    busy = {"kBusyThreads": 1}  # small, a team with all of a row's pairs
    for few, (c, d, scheme) in pairwise((6, 29, 50, 101, 174), DIVERGENCES, (TABLE, OWN_TABLE)):
        yield case("small_busy", (2, 7, c), scheme, divergence=d, quick=few, emulator=busy)
    far_classes = (6, 174, 20, 50, 101, 250, 300, 500, 700, 1000)
    for few, (path, scheme, c, scale, all_of_it) in pairwise(
        PATHS, (TABLE, CYCLIC, EXHAUSTIVE), far_classes, (1.5, 0.01, 30.0), (False, True)
    ):
        made = {"count": 5, "scale": scale, "emulator": PATHS[path], "quick": few and c in (6, 174)}
        made |= masked | {"clean_path": "routed"} if all_of_it else {}
        yield case(named(what="pairs", path=path or "small"), (2, 7, c), scheme, **made)
    sizes = ((90, 11, 32, 1.5), (33, 40, 20, 8.0), (17, 174, 16, 1.5))
    for _, (path, scheme, dtype, (n, c, k, scale)) in pairwise(
        PATHS, (TABLE, CYCLIC), DTYPES[:3], sizes
    ):
        what, made = named(what="many_rows", path=path), {"dtype": dtype, "scale": scale}
        yield case(what, (2, n, c), scheme, count=k, emulator=PATHS[path], **made)
    for path, c in product(PATHS, (6, 101, 500)):
        rest = {"change": own_donors, "scale": 2.0, "factor": None, "emulator": PATHS[path]}
        yield case(named(what="own_donors", path=path), (2, 9, c), TABLE, count=6, **rest)
        rest = {"change": identity, "checks": (partial(checks.stays_in, row=3),)}
        rest["emulator"] = PATHS[path]
        yield case(named(what="identity", path=path), (2, 9, c), TABLE, count=6, **rest)
        bits = (behaviour.dirty_memory, *((checks.not_finite,) if c == 6 else ()))
        rest = {"checks": bits, "emulator": PATHS[path], "strategy": "collaborative"}
        yield case(named(what="bits", path=path), (2, 12, c), TABLE, count=9, **rest)
    yield case("far_by_itself", (2, 64, 520), count=16)
    yield case("far_by_itself", (2, 12, 390), count=9)
    for n, c in ((64, 3), (65, 40), (700, 9), (33000, 1)):  # csrc/cuda/sums.cu
        chosen = {"divergence": "mse", "strategy": "collaborative", "count": 1}
        yield case("bias", (2, n, c), TABLE if c > 1 else CYCLIC, **chosen)
        if n < 100:
            yield case("bias_large", (2, n, c), TABLE, emulator=LARGE_PATH, **chosen)
    for n, scheme in product((1, 2, 70, 300), (TABLE, EXHAUSTIVE)):
        if n < 100 or scheme == TABLE:
            yield case("rows", (2, n, 3), scheme, count=2)


def cases() -> Iterator[Case]:
    yield from far_pairs()
    yield from emulated()
