"""permuted_divergence: paths of the CUDA library that the other cases do not take."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from divergences import DTYPES, Batch

from mcr_fast._names import DIVERGENCES
from suite import behaviour, checks
from suite.cases import Case, pairwise
from suite.cases.permuted_divergence import (
    BAND,
    CLEAN_PATHS,
    CYCLIC,
    EXHAUSTIVE,
    OWN_TABLE,
    SCHEMES,
    STRATEGIES,
    TABLE,
    every_pair_dropped,
    pairs,
)

WINDOW = ("window", False)  # cyclic, with the shifts one after the other
# N, C, K: whole and ragged blocks of 32 rows, chunks of 64 classes, cells of 8, bands of 32 shifts
BAND_SHAPES = [
    *((64, 8, 32), (97, 1, 5), (65, 64, 33), (128, 65, 8), (75, 130, 40), (96, 70, 95)),
    *((64, 200, 7), (70, 37, 64), (127, 12, 31)),
]
MASKED = {"present": True, "weighted": True, "exclude": "same_label", "factor": None}


def huge(x: Batch) -> Batch:
    """Some rows so far apart that their masses leave the range of the band."""
    x.contributions[:, 1::5] += torch.linspace(-300, 300, x.contributions.shape[2])
    x.contributions[0, 2::7] -= torch.linspace(-200, 200, x.contributions.shape[2])
    return x


def alike(x: Batch) -> Batch:
    """Some rows near each other among others that are not."""
    x.contributions[:, 3::9] = x.contributions[:, :1] * (1 + 1e-3)
    return x


def missing(x: Batch, rows: slice) -> Batch:
    """Rows that no pair holds, with anything in them."""
    x.present[rows] = False
    return x


def bands() -> Iterator[Case]:
    """Two modalities whose donors are shifts. Here on the emulator, and large ones on a GPU."""
    case = partial(pairs, backends=("cuda",), here=("cuda",), emulator=BAND, subsets="single")
    for few, ((n, c, k), strategy, clean_path, scale, all_of_it) in pairwise(
        BAND_SHAPES, STRATEGIES, CLEAN_PATHS, (1.5, 0.01, 30.0), (False, True)
    ):
        made = {"strategy": strategy, "clean_path": clean_path, "scale": scale}
        made |= MASKED if all_of_it else {}
        yield case("band", (2, n, c), WINDOW, count=k, quick=few and n < 70, **made)
    shapes = (64, 9), (70, 66)
    for few, (change, (n, c), masked) in pairwise((huge, alike), shapes, (False, True)):
        made = {"change": change, "count": 20, "factor": None} | (MASKED if masked else {})
        yield case(f"band_{change.__name__}", (2, n, c), WINDOW, quick=few, **made)
    for n, c in ((64, 5), (97, 20), (100, 70)):
        yield case("band", (2, n, c), EXHAUSTIVE, exclude="self", quick=n == 64)
        yield case("band_scattered", (2, n, c), CYCLIC, count=4, quick=n == 64)
    for dtype in DTYPES[:3]:
        rest = {"count": 33, "dtype": dtype, "checks": (checks.bound, behaviour.dirty_memory)}
        yield case("band_chunks", (2, 66, 30), WINDOW, **rest | {"emulator": BAND | CHUNKS})
        yield case("band_bits", (2, 66, 30), WINDOW, **rest, present=True, quick=dtype == DTYPES[1])
    rest = {"count": 40, "checks": (behaviour.last_first,), "change": alike}
    yield case("band_last_first", (2, 66, 30), WINDOW, quick=True, **rest, **MASKED)
    for how in ("present", "weight", "labels"):
        dropped = {"change": partial(every_pair_dropped, how=how), "checks": (checks.zero,)}
        dropped |= {"exclude": "same_label" if how == "labels" else "none", "bias": False}
        yield case(f"band_dropped_by_{how}", (2, 70, 11), WINDOW, quick=True, **dropped)
    for rows in (slice(3, 4), slice(60, 66)):
        anything = partial(checks.anything_in, rows={"contributions": list(range(70))[rows]})
        rest = {"change": partial(missing, rows=rows), "checks": (anything,), "present": True}
        yield case(f"band_anything_{rows.start}", (2, 70, 11), WINDOW, count=9, quick=True, **rest)
    rest = {"checks": (checks.not_finite,), "strategy": "collaborative", "count": 9}
    yield case("band_bad", (2, 66, 7), WINDOW, quick=True, **rest)
    for name, shift in {"zero": 0, "all_rows": 66, "far": 1 << 40}.items():

        def wrong(x: Batch, shift=shift) -> Batch:
            return replace(x, donors=x.donors.clone().index_fill_(1, torch.tensor([2]), shift))

        check = partial(checks.nan_or_raises, match="permutation|shift")
        rest = {"change": wrong, "checks": (check,), "count": 5, "factor": None}
        yield case(f"band_wrong_{name}", (2, 66, 7), WINDOW, quick=shift == 0, **rest)
    large = partial(pairs, "band", backends=("cuda",), subsets="single")
    for (n, c, k), scale, dtype in zip(
        ((4096, 22, 6), (701, 50, 15), (300, 174, 11), (1000, 1000, 40), (257, 4096, 32)),
        (1.5, 0.17, 1.5, 8.0, 1.5), (*DTYPES[:3], *DTYPES[:2]), strict=True,
    ):  # fmt: skip
        yield large((2, n, c), WINDOW, count=k, scale=scale, dtype=dtype, thorough=n == 701)
    yield large((2, 701, 50), WINDOW, count=40, clean_path="routed", **MASKED)
    yield large((2, 600, 33), EXHAUSTIVE)


CHUNKS = {"kMaxPairBytes": 1}  # one band at a time


def own_donors(x: Batch) -> Batch:
    """Some permutations leave every row where it is; two rows are near each other."""
    x.donors[0, 0] = x.donors[0, 3] = torch.arange(9)
    x.contributions[:, 7] = x.contributions[:, 2]
    return x


def identity(x: Batch) -> Batch:
    x.donors[:] = torch.arange(9)
    x.contributions[0, 3, 5] = torch.nan
    return x


def small() -> Iterator[Case]:
    """Small batches: csrc's teams of lanes by the number of classes, parts of a row's pairs."""
    case = partial(pairs, backends=("cuda",), here=("cuda",))
    for _, (c, d, exclude) in pairwise((6, 29, 50, 101, 174), DIVERGENCES, ("none", "self")):
        few = {"count": 16, "present": True, "divergence": d, "exclude": exclude}
        few["factor"] = None if exclude == "self" else -2.5
        yield case("few_rows", (2, 9, c), TABLE, **few)
    for few, (scheme, d, strategy, clean_path, all_of_it) in pairwise(
        SCHEMES, DIVERGENCES, STRATEGIES, CLEAN_PATHS, (False, True)
    ):
        made = {"divergence": d, "strategy": strategy, "clean_path": clean_path, "quick": few}
        made |= MASKED if all_of_it else {}
        yield case("routes", (3, 7, 11), scheme, count=3, **made)
    busy = {"kBusyThreads": 1}  # a team with all of a row's pairs
    for few, (c, d, scheme) in pairwise((6, 29, 50, 101, 174), DIVERGENCES, (TABLE, OWN_TABLE)):
        yield case("small_busy", (2, 7, c), scheme, divergence=d, quick=few, emulator=busy)
    for few, (scheme, c, scale, all_of_it) in pairwise(
        (TABLE, CYCLIC, EXHAUSTIVE), (6, 174, 20, 50, 101), (1.5, 0.01, 30.0), (False, True)
    ):
        made = {"count": 5, "scale": scale, "quick": few and c in (6, 174)}
        made |= MASKED | {"clean_path": "routed"} if all_of_it else {}
        yield case("pairs", (2, 7, c), scheme, **made)
    sizes = ((90, 11, 32, 1.5), (33, 40, 20, 8.0), (17, 174, 16, 1.5))
    for _, (scheme, dtype, (n, c, k, scale)) in pairwise((TABLE, CYCLIC), DTYPES[:3], sizes):
        yield case("many_rows", (2, n, c), scheme, count=k, dtype=dtype, scale=scale)
    for c in (6, 101):
        rest = {"change": own_donors, "scale": 2.0, "factor": None}
        yield case("own_donors", (2, 9, c), TABLE, count=6, **rest)
        rest = {"change": identity, "checks": (partial(checks.stays_in, row=3),)}
        yield case("identity", (2, 9, c), TABLE, count=6, **rest)
        bits = (behaviour.dirty_memory, *((checks.not_finite,) if c == 6 else ()))
        yield case("bits", (2, 12, c), TABLE, count=9, checks=bits, strategy="collaborative")
    for n, c in ((64, 3), (65, 40)):
        chosen = {"divergence": "mse", "strategy": "collaborative", "count": 1}
        yield case("bias", (2, n, c), TABLE, **chosen)
    for n, scheme in product((1, 2, 70), (TABLE, EXHAUSTIVE)):
        yield case("rows", (2, n, 3), scheme, count=2)


def cases() -> Iterator[Case]:
    yield from bands()
    yield from small()
