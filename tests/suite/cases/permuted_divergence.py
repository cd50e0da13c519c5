"""permuted_divergence: M modalities, N rows, C classes, K permutations.

On the CPU up to 32 classes (donors from a table) or 48 (shifts) a lane of a vector takes a whole
row; beyond, and always in float64, the lanes take the classes of one row. Triton's configurations
and the CUDA library's teams go by C too. Classes here stand on both sides of each limit.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle, product

import masks
import torch
from divergences import DTYPES, Batch, make_batch, paired_off

from mcr_fast._checks import subset_bits
from mcr_fast._names import DIVERGENCES, OF_LOGITS
from mcr_fast.ops._limits import Call, Pairs, in_a_band, pairs_of_cuda
from suite import behaviour, checks
from suite.cases import (
    CAPABILITIES,
    CPU,
    EVERYWHERE,
    KERNELS,
    NATIVE,
    Case,
    fitting,
    named,
    pairwise,
    take,
)
from suite.checks import bound
from suite.subjects import LN2, Divergence

FLOAT32, BFLOAT16, FLOAT16, FLOAT64 = DTYPES
STRATEGIES = ("greedy", "independent", "collaborative")
CLEAN_PATHS = ("shared", "routed", "detached")
TABLE, OWN_TABLE, CYCLIC, OWN_CYCLIC, EXHAUSTIVE = SCHEMES = (
    *(("table", False), ("table", True), ("cyclic", False), ("cyclic", True)),
    ("exhaustive", False),
)
BAND = {"kSmallRows": 0}  # on the emulator: no batch is a small one

MASKS = ("present", "weighted")
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
    backends = rest.pop("backends", KERNELS)
    backends = fitting("permuted_divergence", made.get("dtype"), backends)
    permutations = n - 1 if donors == "exhaustive" else made.get("count", 3)
    subsets = subset_bits(options.get("subsets", "all"), m)
    weighs = options.get("exclude", "none") != "none" or not made.keys().isdisjoint(MASKS)
    kind = "own" if own else {"window": "cyclic"}.get(donors, donors)
    of_pairs = Pairs(n, permutations, subsets, options.get("divergence", "jsd"), kind, weighs)
    small = not rest.get("emulator", {}).get("kSmallRows", 1)
    refused = (in_a_band if small else pairs_of_cuda)(Call(c, modalities=m, pairs=of_pairs))
    rest["backends"] = tuple(name for name in backends if name != "cuda" or not refused)
    return Case(
        "permuted_divergence",
        name,
        lambda: Divergence(change(make_batch(*shape, donors, own=own, **made)), options, factor),
        work=len(subsets) * n * permutations * c,
        **rest,
    )


LANES = 21  # rows that fill a vector of lanes, and a rest, on every instruction set


def twins(what: str, shape: tuple[int, int, int], *scheme: tuple[str, bool], **rest):
    """A case of few rows for what is slow without a GPU, and of more for a CPU's vectors."""
    m, n, c = shape
    backends = rest.pop("backends", KERNELS)
    slow = tuple(name for name in backends if name in ("triton", "cuda"))
    for size, names in ((n, slow), (LANES, tuple(name for name in backends if name not in slow))):
        if names:
            yield pairs(what, (m, size, c), *scheme, backends=names, **rest)


def donors() -> Iterator[Case]:
    masked = {"present": True, "weighted": True}
    every = {"exclude": "self", "strategy": "collaborative", "factor": None}
    for few, (scheme, d, wide, all_of_it) in pairwise(
        SCHEMES, DIVERGENCES, (False, True), (False, True)
    ):
        rest = masked | every if all_of_it else {}
        rest["quick"] = few if scheme in (CYCLIC, OWN_TABLE) or wide else few and NATIVE
        shape, rest["backends"] = ((3, 21, 101), NATIVE) if wide else ((2, 7, 6), KERNELS)
        yield pairs("donors", shape, scheme, count=2, divergence=d, **rest)
    yield pairs("all", (3, 4, 6), count=1, quick=True, thorough=True, **masked, **every)
    for few, (scheme, d, exclude, present, weighted, c) in pairwise(
        (TABLE, CYCLIC, EXHAUSTIVE), DIVERGENCES, ("none", "self", "same_label"),
        (False, True), (False, True), (5, 70),
    ):  # fmt: skip
        chosen = {"exclude": exclude, "present": present, "weighted": weighted, "count": 2}
        chosen |= {"interpreted": c == 5, "quick": few and CPU, "divergence": d}
        yield pairs("kept", (2, 9, c), scheme, bias=c > 5, **chosen)


# M, N, C: aligned, ragged, two rows, one class, more than one tile of rows, both sides of every
# limit, primes
SHAPES = [
    *((2, 32, 16), (2, 9, 7), (2, 2, 1), (3, 5, 1), (2, 70, 3), (2, 3, 2), (2, 19, 32)),
    *((2, 19, 33), (2, 19, 48), (2, 19, 49), (2, 19, 64), (2, 19, 65), (3, 15, 37)),
    *((2, 3, 101), (2, 2, 174), (2, 5, 513), (2, 3, 1025)),
]
LARGE = [(2, 65, 101), (2, 130, 174), (2, 40, 513), (2, 12, 1025), (2, 7, 2049), (2, 5, 4096)]
QUICK_CLASSES = {7: True, 174: True, 1: NATIVE, 33: NATIVE}


def shapes() -> Iterator[Case]:
    for few, (shape, scheme, d) in pairwise(SHAPES, (TABLE, CYCLIC, EXHAUSTIVE), DIVERGENCES):
        rest = {"divergence": d, "count": 1 if shape[2] > 100 else 3, "interpreted": few}
        yield pairs("shape", shape, scheme, quick=few and CPU, **rest)
    for c, quick in QUICK_CLASSES.items():
        shape = next(shape for shape in SHAPES if shape[2] == c)
        yield pairs("quick", shape, TABLE, count=2, quick=quick, thorough=c in (7, 174))
    for shape, scheme in zip(LARGE, cycle((TABLE, CYCLIC)), strict=False):
        yield pairs("shape", shape, scheme, thorough=shape[2] == 1025)
    yield pairs("parts", (2, 40, 6), count=33, quick=CPU)
    yield pairs("production", (2, 256, 101), TABLE, count=32, dtype=BFLOAT16)
    yield pairs("production", (2, 256, 101), CYCLIC, count=32)
    yield pairs("production", (2, 2048, 1000), TABLE, count=4)
    yield pairs("production", (2, 2048, 1000), CYCLIC, count=4)
    yield pairs("production", (2, 4096, 174), CYCLIC, count=8, dtype=BFLOAT16, thorough=True)


def routing() -> Iterator[Case]:
    for few, (strategy, clean_path) in pairwise(STRATEGIES, CLEAN_PATHS):
        routes = {"strategy": strategy, "clean_path": clean_path}
        yield pairs("routing", (2, 5, 4), count=1, quick=NATIVE, **routes)
        rest = {"present": True, "factor": None, "interpreted": few}
        yield pairs("routing", (3, 4, 4), count=1, quick=NATIVE, **rest, **routes)
    for _, (strategy, clean_path, (m, subsets), c, factor) in pairwise(
        STRATEGIES, CLEAN_PATHS, ((2, "all"), (4, "single"), (4, "all")), (5, 70), (-2.5, None)
    ):
        routes = {"strategy": strategy, "clean_path": clean_path, "subsets": subsets}
        yield pairs("routing", (m, 18, c), factor=factor, present=True, backends=CPU, **routes)
    for m in range(2, 9):
        chosen = {"clean_path": "routed", "count": 1, "factor": None, "subsets": "single"}
        quick = m == 8 and NATIVE
        yield pairs("modalities", (m, 6, 5), OWN_CYCLIC, quick=quick, **chosen)
        chosen |= {"subsets": "all", "backends": NATIVE if m < 8 else CPU}
        yield pairs("modalities", (m, 6, 66 if m < 6 else 5), OWN_CYCLIC, **chosen)


def dtypes() -> Iterator[Case]:
    for few, (dtype, scheme, d, c) in pairwise(DTYPES, SCHEMES, DIVERGENCES, (10, 80)):
        made = {"dtype": dtype, "weighted": True, "divergence": d, "count": 2}
        quick = few if dtype == BFLOAT16 else few and NATIVE
        backends = KERNELS if c == 10 else NATIVE
        yield pairs("dtype", (2, 7, c), scheme, quick=quick, backends=backends, **made)
    for first, second in product(DTYPES[:3], repeat=2):

        def two(x: Batch, first=first, second=second) -> Batch:
            return replace(x, contributions=x.contributions.to(first), bias=x.bias.to(second))

        rest = {"change": two, "checks": (checks.dtypes_of_inputs,), "quick": CPU}
        name = named(what="two_dtypes", first=first, second=second)
        rest["interpreted"] = first != second
        yield pairs("", (2, 6, 9), name=name, strategy="collaborative", **rest)


def magnitudes() -> Iterator[Case]:
    scales = (1e4, 0.01, 8.0, 60.0, 300.0)
    for few, (scale, d, scheme, c, dtype) in pairwise(
        scales, DIVERGENCES, (CYCLIC, TABLE, EXHAUSTIVE), (6, 2, 66), DTYPES
    ):
        rest = {"count": 2, "quick": few and CPU, "interpreted": few, "dtype": dtype}
        yield pairs("logits", (2, 20, c), scheme, scale=scale, divergence=d, **rest)
    yield pairs("logits", (2, 5, 6), scale=1e4, divergence="binary_jsd", quick=True)
    for few, (d, delta, scheme, c) in pairwise(
        DIVERGENCES, (1e-2, 1e-3, 1e-4, 1e-5), SCHEMES, (5, 33, 101)
    ):

        def near(x: Batch, delta=delta) -> Batch:
            return replace(x, contributions=x.contributions[:, :1] + delta * x.contributions)

        check = partial(checks.keeps_digits, delta=delta)
        rest = {"change": near, "checks": (check,), "quick": few and CPU, "interpreted": few}
        made = {"bias": False, "scale": 1.0, "exclude": "self", "divergence": d}
        yield from twins(f"near_{delta:g}", (2, 8, c), scheme, **made, **rest)


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
    for few, (scheme, (n, c), size) in pairwise(SCHEMES, ((6, 13), (12, 72)), (80.0, 1e4, -1e4)):
        rest = {"change": partial(one_class, size=size), "exclude": "self", "subsets": "single"}
        rest |= {"bias": False, "count": 2, "quick": few and CPU, "interpreted": few}
        check = partial(checks.gives, values=[LN2, 0])
        yield pairs(f"one_class_{size:g}", (2, n, c), scheme, checks=(check,), **rest)
    for few, (scheme, (n, c)) in pairwise(SCHEMES, ((6, 13), (12, 72))):
        rest = {"count": 2, "quick": few and CPU, "interpreted": c == 13}
        zero = {"change": no_share, "checks": (checks.zero,), "bias": False}
        yield from twins("underflow", (2, n, c), scheme, **zero, **rest)
        yield from twins("masked_class", (2, 8, c), scheme, checks=(checks.no_class,), **rest)


def masked() -> Iterator[Case]:
    rest = {"factor": 1.0, "checks": (checks.masked,), "count": 2, "seed": 5}
    for few, (d, carrier, mask, (donors, c)) in pairwise(
        OF_LOGITS, masks.CARRIERS, masks.MASKS, masks.LAYOUTS
    ):
        what = named(what="mask", mask=mask, carrier=carrier)
        change = partial(masks.masked_batch, carrier, mask)
        chosen = {"divergence": d, "quick": few and CPU, "interpreted": few, "change": change}
        chosen["backends"] = EVERYWHERE if few else (*KERNELS, "reference")
        yield from twins(what, (2, 9 if c < 10 else 19, c), (donors, False), **chosen, **rest)
        if few:
            routes = {"clean_path": "routed", "strategy": "collaborative", "divergence": d}
            routes |= rest | {"factor": None, "change": change, "interpreted": mask == -1e9}
            scheme = OWN_TABLE if c > 10 else CYCLIC
            yield pairs(what, (3, 7, 5), scheme, backends=EVERYWHERE, **routes)
            yield pairs(what, (2, 9, 5), dtype=FLOAT64, divergence=d, change=change, **rest)
    for few, (where, offset, (donors, c)) in pairwise(
        ("bias", "first", "every row"), masks.OFFSETS, masks.LAYOUTS
    ):  # not the reference: its sums keep the offset
        what = named(what="offset", offset=offset, where=where)
        chosen = {"change": partial(masks.batch_apart, where, offset), "interpreted": few}
        chosen["backends"] = (*KERNELS, *CAPABILITIES) if few else KERNELS
        shape, quick = (2, 9 if c < 10 else 19, c), few and CPU
        yield from twins(what, shape, (donors, False), quick=quick, **chosen, **rest)


def infinite() -> Iterator[Case]:
    for few, (d, value) in pairwise(DIVERGENCES, (-torch.inf, torch.inf, torch.nan)):
        rest = {"change": partial(masks.masked_batch, "first", value), "divergence": d}
        rest |= {"checks": (checks.all_nan,), "quick": d == "jsd" and value < 0}
        rest["backends"] = EVERYWHERE if few else KERNELS
        yield from twins(f"infinite_{value}", (2, 5, 5), count=2, **rest)


def every_pair_dropped(x: Batch, how: str) -> Batch:
    n = x.contributions.shape[1]
    if how == "present":
        return replace(x, present=torch.zeros(n, 2, dtype=torch.bool))
    if how == "weight":
        return replace(x, sample_weight=torch.zeros(n))
    return replace(x, labels=x.labels * 0)


def nothing() -> Iterator[Case]:
    zero = {"checks": (checks.zero,)}
    for few, (scheme, dtype, c, (n, count)) in pairwise(
        SCHEMES, (FLOAT32, FLOAT64), (5, 80), ((0, 3), (1, 3), (6, 0))
    ):
        if (n == 1 and scheme[0] == "table") or (count == 0 and scheme == EXHAUSTIVE):
            continue
        made = {"count": count, "dtype": dtype, "present": True}
        yield pairs("nothing", (2, n, c), scheme, quick=few, **made, **zero)
    for few, (scheme, how, (n, c)) in pairwise(
        SCHEMES, ("present", "weight", "labels"), ((7, 4), (20, 70))
    ):
        made = {"bias": False, "exclude": "same_label" if how == "labels" else "none"}
        made |= {"change": partial(every_pair_dropped, how=how), "interpreted": few}
        quick = few and CPU
        yield from twins(f"dropped_by_{how}", (2, n, c), scheme, quick=quick, **made, **zero)


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
    rest = {"strategy": "collaborative", "checks": (checks.not_finite,), "quick": True}
    yield pairs("bad", (2, 2, 4), TABLE, count=1, **rest)
    for few, (scheme, d, c, scale) in pairwise(SCHEMES, DIVERGENCES, (6, 1, 70), (1.5, 60.0)):
        chosen = {"divergence": d, "strategy": "collaborative", "checks": (checks.not_finite,)}
        chosen |= {"count": 1, "quick": few and CPU, "interpreted": few and c == 6}
        yield from twins("bad", (2 if c == 6 else 3, 5, c), scheme, scale=scale, **chosen)
    table = ("weight", "none"), ("weight", "self"), ("same_label", "same_label")
    for schemes, hows in ((SCHEMES, (("present", "none"),)), ((TABLE, OWN_TABLE), table)):
        for few, (scheme, d, c, i, (how, exclude)) in pairwise(
            schemes, DIVERGENCES, (6, 40, 70), (0, 5), hows
        ):
            rows = [i, i + 1] if how == "same_label" else [i]
            check = partial(checks.anything_in, rows={"contributions": rows})
            made = {"present": how == "present", "weighted": how != "same_label", "count": 2}
            made |= {"change": partial(alone, how=how, i=i), "exclude": exclude, "divergence": d}
            made |= {"quick": few and CPU, "checks": (check,)}
            made["interpreted"] = few and c == 6 and scheme != EXHAUSTIVE
            yield from twins(f"anything_{how}_{i}", (2, 8, c), scheme, **made)


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
    for (name, (order, rows)), exclude in product(WRONG.items(), ("none", "self")):
        if exclude == "none" and name not in WRONG_IN_SHORT:
            continue  # kinds that differ, not every number

        def change(x: Batch, order=order, rows=rows) -> Batch:
            order = None if order is None else torch.tensor(order)
            return replace(x, order=order, donors=torch.tensor(rows))

        rest = {"change": change, "checks": (check,), "factor": None}
        rest["quick"] = exclude == "self" and (name in WRONG_IN_SHORT[::3] or NATIVE)
        rest["interpreted"] = name in WRONG_IN_SHORT
        rest["name"] = named(what="wrong", how=name, exclude=exclude)
        options = {"strategy": "independent", "subsets": "single", "exclude": exclude}
        yield pairs("", (2, 5, 3), **options, **rest)


def behaves() -> Iterator[Case]:
    """Small inputs on every path, through everything that does not depend on numbers."""
    made = {"present": True, "weighted": True, "count": 2, "clean_path": "routed"}
    rest = {"checks": (bound, *behaviour.BEHAVIOUR)}
    yield from twins("behaviour", (2, 6, 9), TABLE, quick=True, thorough=True, **made, **rest)
    yield from twins("behaviour", (2, 9, 20), CYCLIC, dtype=BFLOAT16, quick=CPU, **made, **rest)
    rest["checks"] = (bound, *behaviour.BEHAVIOUR[:6])
    for dtype, (scheme, c) in zip(DTYPES, ((CYCLIC, 20), *[(TABLE, 40)] * 2, (EXHAUSTIVE, 70)),
                                  strict=True):  # fmt: skip
        on = {"dtype": dtype, "backends": NATIVE}
        yield from twins("behaviour", (3, 9, c), scheme, **on, **made, **rest)
        large = rest | {"backends": CPU, "dtype": dtype}
        yield pairs("behaviour", (2, 90, 30), count=20, **large)
        yield pairs("behaviour", (2, 90, 101), OWN_TABLE, exclude="self", **large)
    for scheme, d in product(SCHEMES, DIVERGENCES):
        made = {"present": True, "weighted": True, "dtype": FLOAT64, "strategy": "collaborative"}
        rest = {"divergence": d, "checks": (behaviour.gradcheck,), "quick": scheme == TABLE}
        yield pairs("gradcheck", (3, 5, 3), scheme, **made, **rest)
    for few, (scheme, present) in pairwise(SCHEMES, (False, True)):
        rest = {"checks": (bound, checks.looks_unequal, checks.adds_up), "count": 2}
        rest |= {"quick": few and NATIVE, "factor": None, "interpreted": not scheme[1]}
        shape = (3 if scheme[1] else 2, 6, 9)
        yield pairs("looks_unequal", shape, scheme, present=present, **rest)


def instruction_sets() -> Iterator[Case]:
    for few, (scheme, d, c, dtype, scale) in pairwise(
        (TABLE, CYCLIC, EXHAUSTIVE), DIVERGENCES, (9, 65, 1, 31, 63, 129), DTYPES, (1.5, 60.0, 1e4)
    ):
        made = {"divergence": d, "dtype": dtype, "scale": scale, "present": scheme == TABLE}
        yield pairs("isa", (3, 21, c), scheme, quick=few, backends=CAPABILITIES, **made)


def cases() -> Iterator[Case]:
    numbers = donors, shapes, routing, dtypes, magnitudes, saturated, masked, nothing
    for group in (*numbers, infinite, not_finite, wrong_donors, behaves, instruction_sets):
        yield from group()
