"""permuted_divergence: M modalities, N rows, C classes, K permutations.

On the CPU up to 32 classes (donors from a table) or 48 (shifts) a lane of a vector takes a whole
row; beyond, and always in float64, the lanes take the classes of one row. Triton's configurations
and the CUDA library's teams go by C too. Classes here stand on both sides of each limit.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle, product

import masks
import torch
from divergences import DTYPES, Batch, make_batch, paired_off

from mcr_fast._names import DIVERGENCES, OF_LOGITS
from suite import checks
from suite.cases import CAPABILITIES, CPU, EVERYWHERE, KERNELS, NATIVE, Case, fitting, named, take
from suite.checks import bound
from suite.subjects import LN2, Divergence

FLOAT32, BFLOAT16, FLOAT16, FLOAT64 = DTYPES
STRATEGIES = ("greedy", "independent", "collaborative")
CLEAN_PATHS = ("shared", "routed", "detached")
TABLE, OWN_TABLE, CYCLIC, OWN_CYCLIC, EXHAUSTIVE = SCHEMES = (
    *(("table", False), ("table", True), ("cyclic", False), ("cyclic", True)),
    ("exhaustive", False),
)
BUSY = {"MCR_EMULATED_BUSY": "1"}  # as though the rows filled a GPU
FAR = {"MCR_EMULATED_FAR": "1"}  # small problems too take the path for pairs that are far apart
PATHS = {None: {}, "far": FAR, "far_busy": FAR | BUSY}

MADE = ("count", "scale", "bias", "present", "weighted", "dtype", "seed")
OPTIONS = ("strategy", "clean_path", "divergence", "exclude", "subsets")


def pairs(
    what: str,
    shape: tuple[int, int, int],
    scheme: tuple[str, bool] = CYCLIC,
    *,
    change: Callable[[Batch], Batch] = lambda x: x,
    factor: float | None = -2.5,  # upstream; None: one for each subset
    name: str | None = None,  # in place of what it is made of
    **rest,  # of make_batch, of the op's options, and of the case
) -> Case:
    """A case named by what it is made of."""
    made, options = take(rest, MADE), take(rest, OPTIONS)
    (m, n, c), (donors, own) = shape, scheme
    features = {"M": m, "N": n, "C": c, "donors": donors, "own": own} | made | options
    name = name or named(what=what, unequal=factor is None, **features)
    rest["backends"] = fitting(made.get("dtype"), rest.pop("backends", KERNELS))
    permutations = n - 1 if donors == "exhaustive" else made.get("count", 3)
    subsets = m if options.get("subsets") == "single" else 2**m - 2
    return Case(
        "permuted_divergence",
        name,
        lambda: Divergence(change(make_batch(*shape, donors, own=own, **made)), options, factor),
        work=subsets * n * permutations * c,
        **rest,
    )


def donors() -> Iterator[Case]:
    masked = {"present": True, "weighted": True}
    every = {"exclude": "self", "strategy": "collaborative", "factor": None}
    for scheme, d in product(SCHEMES, DIVERGENCES):
        small, wide = (2, 7, 6), (3, 21, 101)
        quick = scheme in (CYCLIC, OWN_TABLE) or (d == "jsd" and NATIVE)
        yield pairs("donors", small, scheme, count=2, divergence=d, quick=quick)
        quick = d == "jsd" and (scheme == CYCLIC or NATIVE)
        yield pairs("all", (3, 5, 6), scheme, count=2, divergence=d, quick=quick, **masked, **every)
        yield pairs("donors", wide, scheme, divergence=d, backends=NATIVE)
        yield pairs("all", wide, scheme, divergence=d, backends=NATIVE, **masked, **every)
    for scheme, d, exclude, present, weighted, c in product(
        (TABLE, CYCLIC, EXHAUSTIVE), DIVERGENCES, ("none", "self", "same_label"),
        (False, True), (False, True), (5, 70),
    ):  # fmt: skip
        chosen = {"exclude": exclude, "present": present, "weighted": weighted, "count": 2}
        chosen["interpreted"] = scheme == TABLE and c == 5 and d == "jsd"
        quick = scheme == TABLE and c == 5 and d == "jsd" and CPU
        yield pairs("kept", (2, 9, c), scheme, bias=c > 5, divergence=d, quick=quick, **chosen)


# M, N, C: aligned, ragged, two rows, one class, more than one tile of rows, both sides of every
# limit, primes
SHAPES = [
    *((2, 32, 16), (2, 9, 7), (2, 2, 1), (3, 5, 1), (2, 70, 3), (2, 3, 2), (2, 19, 11)),
    *((2, 19, 31), (2, 19, 32), (2, 19, 33), (2, 19, 48), (2, 19, 49), (2, 19, 63), (2, 19, 64)),
    *((2, 19, 65), (3, 15, 37), (2, 3, 101), (2, 2, 174), (2, 5, 513), (2, 3, 1025)),
]
LARGE = [(2, 65, 101), (2, 130, 174), (2, 40, 513), (2, 12, 1025), (2, 7, 2049), (2, 5, 4096)]
QUICK_CLASSES = {7: True, 174: True, 1: NATIVE, 33: NATIVE}


def shapes() -> Iterator[Case]:
    for shape, scheme, d in product(SHAPES, (TABLE, CYCLIC, EXHAUSTIVE), DIVERGENCES):
        quick = scheme != EXHAUSTIVE and d == "jsd" and QUICK_CLASSES.get(shape[2], False)
        count = 1 if shape[2] > 100 else 3
        yield pairs("shape", shape, scheme, divergence=d, count=count, quick=quick)
    for shape, scheme in product(LARGE, (TABLE, CYCLIC)):
        yield pairs("shape", shape, scheme, thorough=True)
    yield pairs("shape", (2, 2, 4100), count=1, backends=("cuda",))
    yield pairs("parts", (2, 40, 6), count=33, quick=CPU)
    yield pairs("production", (2, 256, 101), TABLE, count=32, dtype=BFLOAT16)
    yield pairs("production", (2, 256, 101), CYCLIC, count=32)
    yield pairs("production", (2, 2048, 1000), TABLE, count=4)
    yield pairs("production", (2, 2048, 1000), CYCLIC, count=4)
    yield pairs("production", (2, 4096, 174), CYCLIC, count=8, dtype=BFLOAT16)


def routing() -> Iterator[Case]:
    for strategy, clean_path in product(STRATEGIES, CLEAN_PATHS):
        routes = {"strategy": strategy, "clean_path": clean_path}
        yield pairs("routing", (2, 5, 4), count=1, quick=NATIVE, **routes)
        yield pairs(
            "routing", (3, 4, 4), count=1, present=True, factor=None, quick=NATIVE, **routes
        )
        for (m, subsets), c, factor in product(
            ((2, "all"), (4, "single"), (4, "all")), (5, 70), (-2.5, None)
        ):
            routes |= {"subsets": subsets, "present": True}
            yield pairs("routing", (m, 18, c), factor=factor, backends=CPU, **routes)
    for m, (subsets, c) in product(range(2, 9), (("single", 5), ("all", 5), ("all", 66))):
        if c == 5 or m < 6:
            chosen = {"subsets": subsets, "clean_path": "routed", "count": 1, "factor": None}
            quick = m == 8 and subsets == "single" and NATIVE
            yield pairs("modalities", (m, 6, c), OWN_CYCLIC, quick=quick, **chosen)


def dtypes() -> Iterator[Case]:
    for dtype, scheme, d in product(DTYPES, SCHEMES, DIVERGENCES):
        chosen = (scheme, d) in zip(cycle(SCHEMES[::2]), DIVERGENCES, strict=False)
        quick = chosen and (dtype == BFLOAT16 or NATIVE)
        made = {"dtype": dtype, "weighted": True, "divergence": d}
        yield pairs("dtype", (2, 7, 10), scheme, count=2, quick=quick, **made)
        yield pairs("dtype", (2, 23, 80), scheme, backends=CPU, **made)
    for first, second in product(DTYPES[:3], repeat=2):

        def two(x: Batch, first=first, second=second) -> Batch:
            return replace(x, contributions=x.contributions.to(first), bias=x.bias.to(second))

        rest = {"change": two, "checks": (checks.dtypes_of_inputs,), "quick": CPU}
        name = named(what="two_dtypes", first=first, second=second)
        yield pairs("", (2, 6, 9), name=name, strategy="collaborative", **rest)


def magnitudes() -> Iterator[Case]:
    for scale, d in product((0.01, 8.0, 60.0, 300.0, 1e4), DIVERGENCES):
        for scheme, c in product((TABLE, CYCLIC, EXHAUSTIVE), (2, 6, 66)):
            quick = scale == 1e4 and c == 6 and d != "mse" and scheme == CYCLIC
            rest = {"count": 2, "quick": quick, "interpreted": c == 6}
            n = 5 if c < 66 else 20
            yield pairs("logits", (2, n, c), scheme, scale=scale, divergence=d, **rest)
        for dtype in DTYPES[1:]:
            yield pairs(
                "logits", (3, 20, 7), scale=scale, dtype=dtype, divergence=d, backends=NATIVE
            )
    for d, delta, scheme, c in product(
        DIVERGENCES, (1e-2, 1e-3, 1e-4, 1e-5), SCHEMES, (5, 33, 101)
    ):

        def near(x: Batch, delta=delta) -> Batch:
            return replace(x, contributions=x.contributions[:, :1] + delta * x.contributions)

        check = partial(checks.keeps_digits, delta=delta)
        rest = {"change": near, "checks": (check,), "quick": delta == 1e-4 and c == 33 and CPU}
        rest["interpreted"] = delta in (1e-2, 1e-4) and c == (5 if scheme == TABLE else 33)
        made = {"bias": False, "scale": 1.0, "exclude": "self", "divergence": d}
        yield pairs(f"near_{delta:g}", (2, 8, c), scheme, **made, **rest)


def one_class(x: Batch, size: float) -> Batch:
    """Rows of another class have nothing in common, in the second modality everything."""
    n = x.contributions.shape[1]
    a = torch.zeros_like(x.contributions)
    a[0, torch.arange(n), torch.arange(n) * 2] = abs(size)
    a[1] = size
    return replace(x, contributions=a)


def no_share(x: Batch) -> Batch:
    a = -1e4 - 100 * x.contributions.abs()
    a[..., 0] = 0
    return replace(x, contributions=a)


def saturated() -> Iterator[Case]:
    for scheme, (n, c) in product(SCHEMES, ((6, 13), (12, 72))):
        made = {"bias": False, "count": 2, "quick": c == 13 and CPU}
        for size in (80.0, 1e4, -1e4):
            rest = {"change": partial(one_class, size=size), "exclude": "self", "subsets": "single"}
            check = partial(checks.gives, values=[LN2, 0])
            yield pairs(f"one_class_{size:g}", (2, n, c), scheme, checks=(check,), **rest, **made)
        rest = {"change": no_share, "checks": (checks.zero,)}
        yield pairs("underflow", (2, n, c), scheme, **rest, **made)
        made.pop("bias")
        yield pairs("masked_class", (2, 8, c), scheme, checks=(checks.no_class,), **made)


def masked() -> Iterator[Case]:
    rest = {"factor": 1.0, "checks": (checks.masked,)}
    for d, carrier, mask in product(OF_LOGITS, masks.CARRIERS, masks.MASKS):
        what = named(what="mask", mask=mask, carrier=carrier)
        rest["change"] = partial(masks.masked_batch, carrier, mask)
        everywhere = {"backends": (*EVERYWHERE, "reference"), "count": 2, "divergence": d}
        some = mask in (-1e4, -1e9, masks.MASKS[-1])
        for donors, c in masks.LAYOUTS:
            shape, quick = (2, 9 if c < 10 else 19, c), mask == -1e9 and c in (5, 51) and CPU
            chosen = {"seed": 5, "quick": quick, "interpreted": some and c == 5}
            yield pairs(what, shape, (donors, False), **chosen, **everywhere, **rest)
        if mask in (-1e6, -1e9):
            routes = {"clean_path": "routed", "strategy": "collaborative", "seed": 6}
            routes |= rest | {"factor": None}
            for scheme in (CYCLIC, OWN_TABLE):
                yield pairs(what, (3, 7, 5), scheme, **routes, **everywhere)
            yield pairs(what, (2, 9, 5), dtype=FLOAT64, divergence=d, **rest)
    for where, offset, (donors, c) in product(
        ("bias", "first", "every row"), masks.OFFSETS, masks.LAYOUTS
    ):  # not the reference: its sums keep the offset
        rest["change"] = partial(masks.batch_apart, where, offset)
        shape, quick = (2, 9 if c < 10 else 19, c), offset == 1e6 and c == 5 and CPU
        what = named(what="offset", offset=offset, where=where)
        chosen = {"count": 2, "seed": 5, "quick": quick, "backends": EVERYWHERE}
        chosen["interpreted"] = c == 5
        yield pairs(what, shape, (donors, False), **chosen, **rest)


def infinite() -> Iterator[Case]:
    everywhere = {"backends": (*EVERYWHERE, "reference"), "checks": (checks.all_nan,)}
    for d, value in product(DIVERGENCES, (torch.inf, -torch.inf, torch.nan)):
        rest = {"change": partial(masks.masked_batch, "first", value), "divergence": d}
        rest["quick"] = d == "jsd" and value < 0
        yield pairs(f"infinite_{value}", (2, 5, 5), count=2, **rest, **everywhere)


def every_pair_dropped(x: Batch, how: str) -> Batch:
    n = x.contributions.shape[1]
    if how == "present":
        return replace(x, present=torch.zeros(n, 2, dtype=torch.bool))
    if how == "weight":
        return replace(x, sample_weight=torch.zeros(n))
    return replace(x, labels=x.labels * 0)


def nothing() -> Iterator[Case]:
    zero = {"checks": (checks.zero,)}
    for scheme, dtype, c, (n, count) in product(
        SCHEMES, (FLOAT32, FLOAT64), (5, 80), ((0, 3), (1, 3), (6, 0))
    ):
        if (n == 1 and scheme[0] == "table") or (count == 0 and scheme == EXHAUSTIVE):
            continue
        made = {"count": count, "dtype": dtype, "present": True, "quick": c == 5}
        yield pairs("nothing", (2, n, c), scheme, **made, **zero)
    for scheme, how, (n, c) in product(
        SCHEMES, ("present", "weight", "labels"), ((7, 4), (20, 70))
    ):
        made = {"bias": False, "exclude": "same_label" if how == "labels" else "none"}
        made["change"], made["quick"] = partial(every_pair_dropped, how=how), c == 4 and CPU
        yield pairs(f"dropped_by_{how}", (2, n, c), scheme, **made, **zero)


def alone(x: Batch, how: str, i: int) -> Batch:
    """Row i, and for same_label the next, in no pair that counts."""
    if how == "present":
        x.present[i] = False  # neither a row nor a donor
    elif how == "same_label":
        paired_off(x, i, i + 1)
        x.labels[i + 1] = x.labels[i]
    else:
        paired_off(x, i, i)
        x.sample_weight[i] = 0
    return x


def not_finite() -> Iterator[Case]:
    for scheme, d, c, scale in product(SCHEMES, DIVERGENCES, (1, 6, 40, 70), (1.5, 60.0)):
        quick = c == 6 and scale == 1.5 and scheme == CYCLIC and (d == "jsd" or NATIVE)
        chosen = {"divergence": d, "strategy": "collaborative", "checks": (checks.not_finite,)}
        chosen |= {"count": 1, "quick": quick, "interpreted": c == 6 and scale == 1.5}
        yield pairs("bad", (2 if c == 6 else 3, 5, c), scheme, scale=scale, **chosen)
    for scheme, d, c, i, (how, exclude) in product(
        SCHEMES, DIVERGENCES, (6, 40, 70), (0, 5),
        (("present", "none"), ("weight", "none"), ("weight", "self"), ("same_label", "same_label")),
    ):  # fmt: skip
        if how != "present" and scheme[0] != "table":
            continue
        rows = [i, i + 1] if how == "same_label" else [i]
        check = partial(checks.anything_in, rows={"contributions": rows})
        made = {"present": how == "present", "weighted": how != "same_label", "count": 2}
        made |= {"change": partial(alone, how=how, i=i), "exclude": exclude, "divergence": d}
        quick = c == 6 and d == "jsd" and CPU
        made["interpreted"] = c == 6 and (i == 0) == (scheme == TABLE)
        yield pairs(f"anything_{how}_{i}", (2, 8, c), scheme, checks=(check,), quick=quick, **made)


FIVE = {
    "far": [0, 1, 1 << 40, 3, 4],
    "before": [0, -1, 2, 3, 4],
    "past_the_end": [1, 2, 3, 4, 5],
    "twice": [1, 1, 2, 3, 4],
}
# name: order, donors
WRONG = {f"table_{name}": (None, [[[1, 2, 3, 4, 0], row]]) for name, row in FIVE.items()}
WRONG |= {f"order_{name}": (row, [[1, 2]]) for name, row in FIVE.items()}
WRONG |= {f"shift_{shift}": ([1, 2, 3, 4, 0], [[1, shift]]) for shift in (0, -1, 5, 1 << 40)}
WRONG["one_modality"] = None, [[[1, 2, 3, 4, 0]], [[1, 1, 2, 3, 4]]]
WRONG_IN_SHORT = ("table_far", "order_twice", "shift_0", "one_modality")


def wrong_donors() -> Iterator[Case]:
    check = partial(checks.nan_or_raises, match="permutation|shift")
    for (name, (order, rows)), exclude, path in product(
        WRONG.items(), ("none", "self"), (None, "far")
    ):

        def change(x: Batch, order=order, rows=rows) -> Batch:
            order = None if order is None else torch.tensor(order)
            return replace(x, order=order, donors=torch.tensor(rows))

        rest = {"change": change, "checks": (check,), "emulator": PATHS[path], "factor": None}
        rest["quick"] = exclude == "self" and (name in WRONG_IN_SHORT or NATIVE)
        rest["name"] = named(what="wrong", how=name, exclude=exclude, path=path)
        options = {"strategy": "independent", "subsets": "single", "exclude": exclude}
        yield pairs("", (2, 5, 3), **options, **rest)


def behaviour() -> Iterator[Case]:
    """Small inputs on every path, through everything that does not depend on numbers."""
    for dtype, (scheme, c) in product(
        DTYPES, ((TABLE, 9), (CYCLIC, 20), (TABLE, 40), (EXHAUSTIVE, 70))
    ):
        quick = c == 9 and dtype == FLOAT32 or (c == 20 and dtype == BFLOAT16 and CPU)
        rest = {"checks": (bound, *checks.BEHAVIOUR), "clean_path": "routed", "quick": quick}
        if c > 20 or dtype == FLOAT16:
            rest["backends"] = CPU
        made = {"dtype": dtype, "present": True, "weighted": True, "count": 2}
        yield pairs("behaviour", (2 if c == 9 else 3, 9, c), scheme, **made, **rest)
    for dtype in DTYPES:
        rest = {"checks": (bound, *checks.BEHAVIOUR[:6]), "backends": CPU, "dtype": dtype}
        yield pairs("behaviour", (2, 90, 30), count=20, **rest)
        yield pairs("behaviour", (2, 90, 101), OWN_TABLE, exclude="self", **rest)
    for scheme, d in product(SCHEMES, DIVERGENCES):
        made = {"present": True, "weighted": True, "dtype": FLOAT64, "strategy": "collaborative"}
        rest = {"divergence": d, "checks": (checks.gradcheck,), "quick": scheme == TABLE}
        yield pairs("gradcheck", (3, 5, 3), scheme, **made, **rest)
    for scheme, present, path in product(SCHEMES, (False, True), PATHS):
        quick = scheme == CYCLIC and not present and path != "far" and NATIVE
        rest = {"checks": (bound, checks.looks_unequal, checks.adds_up), "quick": quick}
        rest |= {"emulator": PATHS[path], "count": 2, "factor": None}
        what = named(what="looks_unequal", path=path)
        yield pairs(what, (3 if scheme[1] else 2, 6, 9), scheme, present=present, **rest)


def instruction_sets() -> Iterator[Case]:
    rest = {"backends": CAPABILITIES}
    for scheme, d, c in product(SCHEMES[::2], DIVERGENCES, (1, 9, 31, 63, 65, 129)):
        quick = d == "jsd" and c in (9, 65)
        yield pairs("isa", (3, 21, c), scheme, divergence=d, quick=quick, **rest)
    for dtype in DTYPES:
        made = {"present": True, "dtype": dtype, "exclude": "self", "quick": True}
        yield pairs("isa", (2, 33, 20), TABLE, **made, **rest)
    for scale in (60.0, 1e4):
        yield pairs("isa", (2, 21, 40), scale=scale, **rest)


# N, K, C with just the 2^20 elements in both subsets from which the CUDA C++ kernels take pairs
# that are far by themselves (docs/math/permuted_divergence.md): one for each of their teams, by C
# and from 8192 rows on, and the last one they take
FAR_SHAPES = [
    *((4096, 22, 6), (1311, 20, 20), (701, 15, 50), (350, 15, 100), (8200, 2, 100)),
    *((257, 16, 128), (300, 11, 174), (129, 16, 256), (100, 14, 384), (64, 16, 512)),
    *((99, 7, 768), (75, 7, 1000), (64, 8, 1024)),
]


def far_pairs() -> Iterator[Case]:
    def case(n: int, k: int, c: int, scheme: tuple[str, bool], **rest) -> Case:
        return pairs("far", (2, n, c), scheme, count=k, backends=("cuda",), **rest)

    dtypes = cycle(DTYPES[:3])
    for shape, scheme in product(FAR_SHAPES, (TABLE, CYCLIC)):
        yield case(*shape, scheme, dtype=next(dtypes))
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
    teams = product((1, 7, 29, 50, 101, 174, 250, 400, 600, 1025), DIVERGENCES)
    for (c, d), scheme, factor in product(teams, (TABLE, CYCLIC), (1.0, None)):
        quick = c in (7, 174) and d == "jsd"
        made = {"count": 2, "divergence": d, "factor": factor, "emulator": BUSY}
        yield case("busy", (2, 3, c), scheme, quick=quick, **made)
    for c, d in product((6, 29, 50, 101, 174), DIVERGENCES):
        few = {"count": 16, "present": True, "divergence": d}
        yield case("few_rows", (2, 9, c), TABLE, **few)
        yield case("few_rows", (2, 9, c), TABLE, factor=None, exclude="self", **few)
    far_classes = (6, 20, 50, 101, 174, 250, 300, 500, 700, 1000)
    for path, scheme, c, scale in product(
        PATHS, (TABLE, CYCLIC, EXHAUSTIVE), far_classes, (0.01, 1.5, 30.0)
    ):
        what, made = named(what="pairs", path=path or "near"), {"count": 5, "scale": scale}
        quick = c in (6, 174) and scale == 1.5 and scheme == TABLE and path == "far"
        made |= {"emulator": PATHS[path], "quick": quick}
        yield case(what, (2, 7, c), scheme, **made)
        made |= {"present": True, "weighted": True, "exclude": "same_label", "factor": None}
        yield case(what, (2, 7, c), scheme, clean_path="routed", **made)
    sizes = ((90, 11, 32, 1.5), (33, 40, 20, 8.0), (17, 174, 16, 1.5))
    for path, scheme, dtype, (n, c, k, scale) in product(PATHS, (TABLE, CYCLIC), DTYPES[:3], sizes):
        what, made = named(what="many_rows", path=path), {"dtype": dtype, "scale": scale}
        yield case(what, (2, n, c), scheme, count=k, emulator=PATHS[path], **made)
    for path, c in product(PATHS, (6, 101, 500)):
        rest = {"change": own_donors, "scale": 2.0, "factor": None, "emulator": PATHS[path]}
        yield case(named(what="own_donors", path=path), (2, 9, c), TABLE, count=6, **rest)
        rest = {"change": identity, "checks": (partial(checks.stays_in, row=3),)}
        rest["emulator"] = PATHS[path]
        yield case(named(what="identity", path=path), (2, 9, c), TABLE, count=6, **rest)
        bits = (checks.dirty_memory, *((checks.not_finite,) if c < 500 else ()))
        rest = {"checks": bits, "emulator": PATHS[path], "strategy": "collaborative"}
        yield case(named(what="bits", path=path), (2, 12, c), TABLE, count=9, **rest)
    yield case("far_by_itself", (2, 64, 520), count=16)
    yield case("far_by_itself", (2, 12, 390), count=9)
    for n, c in ((64, 3), (65, 40), (700, 9), (33000, 1)):  # csrc/cuda/sums.cu
        chosen = {"divergence": "mse", "strategy": "collaborative", "count": 1}
        yield case("bias", (2, n, c), TABLE if c > 1 else CYCLIC, **chosen)
    for n, scheme in product((1, 2, 70, 300), (TABLE, EXHAUSTIVE)):
        if n < 100 or scheme == TABLE:
            yield case("rows", (2, n, 3), scheme, count=2)


def fuzz(seed: int) -> Case:
    """A random batch, options and upstream gradient."""
    rng = random.Random(seed)
    shape = rng.choice([2, 2, 3, 4]), rng.choice([1, 2, 3, 8, 16, 17, 40])
    return pairs(
        "",
        (*shape, rng.choice([1, 2, 3, 8, 10, 31, 32, 33, 48, 49, 63, 64, 65, 100])),
        rng.choice(SCHEMES),
        name=f"fuzz_{seed}",
        count=rng.choice([1, 2, 3, 9]),
        scale=rng.choice([0.01, 0.3, 1.0, 3.0, 30.0, 1000.0]),
        bias=rng.random() < 0.5,
        present=rng.random() < 0.3,
        weighted=rng.random() < 0.3,
        dtype=rng.choice(DTYPES),
        seed=seed,
        strategy=rng.choice(STRATEGIES),
        clean_path=rng.choice(CLEAN_PATHS),
        subsets=rng.choice(["single", "all"]),
        divergence=rng.choice(DIVERGENCES),
        exclude=rng.choice(["none", "self", "same_label"]),
        factor=rng.choice([None, None, 1.0, -0.3]),
        backends=CPU,
        quick=seed < 40,
    )


def cases() -> Iterator[Case]:
    groups = (donors, shapes, routing, dtypes, magnitudes, saturated, masked, nothing)
    for group in (
        *groups,
        infinite,
        not_finite,
        wrong_donors,
        behaviour,
        instruction_sets,
        far_pairs,
        emulated,
    ):
        yield from group()
    yield from map(fuzz, range(150))
