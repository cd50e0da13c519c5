"""permuted_divergence: M modalities, N rows, C classes, K permutations.

On the CPU up to 32 classes (donors from a table) or 64 (shifts) a lane of a vector takes a whole
row; beyond, and always in float64, the lanes take the classes of one row. Triton's configurations
and the CUDA library's teams go by C too. Classes here stand on both sides of each limit.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import masks
import torch
from divergences import DIVERGENCES, DTYPES, Batch, make_batch, paired_off

from suite import checks
from suite.cases import CPU, EVERYWHERE, KERNELS, NATIVE, Case
from suite.checks import bound
from suite.subjects import LN2, Divergence

STRATEGIES = ("greedy", "independent", "collaborative")
CLEAN_PATHS = ("shared", "routed", "detached")
SCHEMES = [
    *(("table", False), ("table", True), ("cyclic", False), ("cyclic", True)),
    ("exhaustive", False),
]
HALVES = (torch.bfloat16, torch.float16)
UNEQUAL = {"factor": None}
FAR = {"MCR_EMULATED_FAR": "1"}  # small problems too take the path for pairs that are far apart
BUSY = {"MCR_EMULATED_BUSY": "1"}  # as though the rows filled a GPU
PATHS = {"": {}, "_far": FAR, "_far_busy": FAR | BUSY}
ALL_OF_IT = {"exclude": "self", "strategy": "collaborative"}


def short(dtype: torch.dtype) -> str:
    return str(dtype)[6:]


def pairs(
    name: str,
    m: int,
    n: int,
    c: int,
    scheme: str = "cyclic",
    *,
    given: dict | None = None,  # what else make_batch takes
    change: Callable[[Batch], Batch] = lambda x: x,
    factor: float | None = -2.5,  # upstream; None: one for each subset
    options: dict | None = None,
    **rest,  # of the case
) -> Case:
    given = {"scheme": scheme, **(given or {})}
    count = n - 1 if scheme == "exhaustive" else given.get("count", 3)
    if given.get("dtype") == torch.float64:
        rest.setdefault("backends", CPU)
    subsets = m if (options or {}).get("subsets") == "single" or m == 2 else 2**m - 2
    return Case(
        "permuted_divergence",
        name,
        lambda: Divergence(change(make_batch(m, n, c, **given)), options or {}, factor),
        work=subsets * n * count * c,
        **rest,
    )


def called(scheme: str, own: bool) -> str:
    return scheme + "_own" * own


def donors() -> Iterator[Case]:
    masked = {"present": True, "weighted": True}
    for (scheme, own), divergence in itertools.product(SCHEMES, DIVERGENCES):
        name, options = f"{called(scheme, own)}_{divergence}", {"divergence": divergence}
        given = {"own": own, "count": 2}
        quick = NATIVE if divergence == "jsd" else scheme == "cyclic" and not own
        yield pairs(name, 2, 7, 6, scheme, given=given, options=options, quick=quick)
        all_given = {"given": given | masked, "options": options | ALL_OF_IT, "factor": None}
        yield pairs(f"{name}_M3", 3, 5, 6, scheme, quick=divergence == "jsd", **all_given)
        for given in ({"own": own}, {"own": own, **masked}):
            masks = "_masked" * (len(given) > 1)
            wide = {"given": given, "options": options, "backends": ("cpu", "cuda")}
            yield pairs(f"{name}_M3_N21_C101{masks}", 3, 21, 101, scheme, **wide)
            if masks:
                wide |= {"factor": None, "options": options | ALL_OF_IT}
                yield pairs(f"{name}_all_M3_N21_C7", 3, 21, 7, scheme, **wide)
        if scheme == "table" and not own:
            quick = CPU
            for exclude in ("self", "same_label"):
                for present, weighted in itertools.product((False, True), repeat=2):
                    given = {"present": present, "weighted": weighted, "bias": False, "count": 2}
                    more = f"_{exclude}{'_present' * present}{'_weighted' * weighted}"
                    chosen = {"given": given, "options": {**options, "exclude": exclude}}
                    yield pairs(f"{name}{more}", 2, 9, 5, scheme, quick=quick, **chosen)


# M, N, C: aligned, ragged, two rows, one class, more than one tile of rows, both sides of every
# limit, primes
SHAPES = [
    *((2, 32, 16), (2, 9, 7), (2, 2, 1), (3, 5, 1), (2, 70, 3), (2, 3, 2), (2, 19, 11)),
    *((2, 19, 31), (2, 19, 32), (2, 19, 33), (2, 19, 48), (2, 19, 49), (2, 19, 63), (2, 19, 64)),
    *((2, 19, 65), (3, 15, 37), (2, 3, 101), (2, 2, 174), (2, 5, 513), (2, 3, 1025)),
    *((2, 65, 101), (2, 130, 174), (2, 40, 513), (2, 12, 1025), (2, 7, 2049), (2, 5, 4096)),
]
QUICK_CLASSES = {7: True, 174: True, 1: NATIVE, 33: NATIVE}


def shapes() -> Iterator[Case]:
    for (m, n, c), scheme in itertools.product(SHAPES, ("table", "cyclic", "exhaustive")):
        large = n * c > 2000
        if large and scheme == "exhaustive":
            continue
        options = {"divergence": "binary_jsd" if (n + c) % 3 == 0 else "jsd"}
        name, given = f"M{m}_N{n}_C{c}_{scheme}", {"count": 1 if c > 100 and n < 10 else 3}
        quick = scheme != "exhaustive" and QUICK_CLASSES.get(c, False)
        yield pairs(name, m, n, c, scheme, given=given, options=options, quick=quick)
        others = [d for d in DIVERGENCES if d != options["divergence"]]
        for divergence in others if not large else ():
            options = {"divergence": divergence}
            yield pairs(f"{name}_{divergence}", m, n, c, scheme, given=given, options=options)
    yield pairs("C4100", 2, 2, 4100, given={"count": 1}, backends=("cuda",))
    yield pairs("parts", 2, 40, 6, given={"count": 33}, quick=CPU)
    yield pairs("production_table", 2, 256, 101, "table", given={"count": 32, "dtype": HALVES[0]})
    yield pairs("production_cyclic", 2, 256, 101, given={"count": 32})
    for scheme, n, k, c in (("table", 2048, 4, 1000), ("cyclic", 2048, 4, 1000)):
        yield pairs(f"production_{scheme}_N{n}", 2, n, c, scheme, given={"count": k})
    halves = {"given": {"count": 8, "dtype": torch.bfloat16}}
    yield pairs("production_bfloat16_N4096", 2, 4096, 174, **halves)


def routing() -> Iterator[Case]:
    for strategy, clean_path in itertools.product(STRATEGIES, CLEAN_PATHS):
        options = {"strategy": strategy, "clean_path": clean_path}
        name = f"{strategy}_{clean_path}"
        for m, count, factor in ((2, 1, -2.5), (3, 1, None)):
            given = {"present": m == 3, "count": count}
            yield pairs(
                f"{name}_M{m}",
                m,
                5,
                4,
                given=given,
                options=options,
                factor=factor,
                quick=NATIVE,
            )
        for m, subsets, c in itertools.product((2, 4), ("single", "all"), (5, 70)):
            chosen = {"options": {**options, "subsets": subsets}, "given": {"present": True}}
            for factor in (-2.5, None):
                more = f"_M{m}_C{c}_{subsets}{'_unequal' * (factor is None)}"
                yield pairs(name + more, m, 18, c, factor=factor, backends=CPU, **chosen)
    for m, (subsets, c) in itertools.product(range(2, 9), (("single", 5), ("all", 5), ("all", 66))):
        if subsets == "single" or m < (6 if c == 66 else 9):
            options, quick = {"subsets": subsets, "clean_path": "routed"}, m == 8 and c == 5
            given = {"own": True, "count": 1}
            yield pairs(
                f"M{m}_{subsets}_C{c}",
                m,
                6,
                c,
                given=given,
                options=options,
                factor=None,
                quick=quick and CPU,
            )


def dtypes() -> Iterator[Case]:
    for dtype, (scheme, own), divergence in itertools.product(DTYPES, SCHEMES, DIVERGENCES):
        options = {"divergence": divergence}
        name = f"{short(dtype)}_{called(scheme, own)}_{divergence}"
        given = {"own": own, "weighted": True, "dtype": dtype, "count": 2}
        chosen = ((scheme, own), divergence) in zip(SCHEMES[::2], DIVERGENCES, strict=True)
        quick = chosen and (dtype == torch.bfloat16 or NATIVE)
        yield pairs(name, 2, 7, 10, scheme, given=given, options=options, quick=quick)
        given["count"] = 3
        wide = {"given": given, "options": options, "backends": ("cpu",)}
        yield pairs(f"{name}_C80", 2, 23, 80, scheme, **wide)
    for first, second in itertools.product(DTYPES, repeat=2):
        if first == second or (torch.float64 in (first, second)):
            continue

        def two(x: Batch, first=first, second=second) -> Batch:
            return replace(x, contributions=x.contributions.to(first), bias=x.bias.to(second))

        name, chosen = f"{short(first)}_bias_{short(second)}", {"strategy": "collaborative"}
        check = (checks.dtypes_of_inputs,)
        yield pairs(name, 2, 6, 9, change=two, options=chosen, checks=check, quick=CPU)


def magnitudes() -> Iterator[Case]:
    for scale, divergence in itertools.product((0.01, 8.0, 60.0, 300.0, 1e4), DIVERGENCES):
        options = {"divergence": divergence}
        for (scheme, own), c in itertools.product(SCHEMES[::2], (2, 6, 66)):
            name = f"logits_{scale:g}_{scheme}_{divergence}_C{c}"
            quick = scale == 1e4 and c == 6 and divergence != "mse" and scheme == "cyclic"
            given = {"own": own, "scale": scale, "count": 2}
            yield pairs(
                name, 2, 5 if c < 66 else 20, c, scheme, given=given, options=options, quick=quick
            )
        for dtype in DTYPES[1:]:
            given = {"scale": scale, "dtype": dtype}
            name = f"logits_{scale:g}_{divergence}_{short(dtype)}"
            yield pairs(name, 3, 20, 7, given=given, options=options, backends=("cpu", "cuda"))
    for divergence, delta in itertools.product(DIVERGENCES, (1e-2, 1e-3, 1e-4, 1e-5)):

        def near(x: Batch, delta=delta) -> Batch:
            return replace(x, contributions=x.contributions[:, :1] + delta * x.contributions)

        for (scheme, own), c in itertools.product(SCHEMES, (5, 33, 101)):
            yield pairs(
                f"near_{delta:g}_{called(scheme, own)}_{divergence}_C{c}",
                2,
                8,
                c,
                scheme,
                given={"own": own, "bias": False, "scale": 1.0},
                change=near,
                options={"exclude": "self", "divergence": divergence},
                checks=(partial(checks.keeps_digits, delta=delta),),
                quick=CPU if delta == 1e-4 and c == 33 else False,
            )


def one_class(size: float, x: Batch) -> Batch:
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
    for (scheme, own), c in itertools.product(SCHEMES, (13, 72)):
        n = 6 if c == 13 else 12
        at, given = f"{called(scheme, own)}_C{c}", {"own": own, "bias": False, "count": 2}
        quick = CPU if c == 13 else False
        for size in (80.0, 1e4, -1e4):
            options = {"exclude": "self", "subsets": "single"}
            yield pairs(
                f"one_class_{size:g}_{at}",
                2,
                n,
                c,
                scheme,
                given=given,
                options=options,
                change=partial(one_class, size),
                checks=(partial(checks.gives, values=[LN2, 0]),),
                quick=quick,
            )
        zero = {"change": no_share, "checks": (checks.zero,), "quick": quick}
        yield pairs(f"underflow_{at}", 2, n, c, scheme, given=given, **zero)
        yield pairs(
            f"masked_class_{at}",
            2,
            8,
            c,
            scheme,
            given={"own": own, "count": 2},
            checks=(checks.no_class,),
            quick=quick,
        )
    dtypes_and_backends = {"backends": (*EVERYWHERE, "reference")}
    for divergence in ("jsd", "binary_jsd"):
        options = {"divergence": divergence}
        for carrier, mask in itertools.product(masks.CARRIERS, masks.MASKS):
            change, check = partial(masks.masked_batch, carrier, mask), (checks.masked,)
            name = f"mask_{mask:.2g}_{carrier.replace(' ', '_').replace(',', '')}_{divergence}"
            for scheme, c in masks.LAYOUTS:
                n = 9 if c < 10 else 19
                yield pairs(
                    f"{name}_{scheme}_C{c}",
                    2,
                    n,
                    c,
                    scheme,
                    factor=1.0,
                    given={"count": 2, "seed": 5},
                    options=options,
                    change=change,
                    checks=check,
                    quick=CPU if mask == -1e9 and c in (5, 51) else False,
                    **dtypes_and_backends,
                )
            if mask not in (-1e6, -1e9):
                continue
            routed = {"clean_path": "routed", "strategy": "collaborative", **options}
            for scheme, own in (("cyclic", False), ("table", True)):
                yield pairs(
                    f"{name}_{called(scheme, own)}_M3",
                    3,
                    7,
                    5,
                    scheme,
                    factor=None,
                    given={"count": 2, "seed": 6, "own": own},
                    options=routed,
                    change=change,
                    checks=check,
                    **dtypes_and_backends,
                )
            given = {"dtype": torch.float64}
            yield pairs(
                f"{name}_float64",
                2,
                9,
                5,
                given=given,
                options=options,
                factor=1.0,
                change=change,
                checks=check,
                backends=("cpu", "reference"),
            )
    for where, offset in itertools.product(("bias", "first", "every row"), masks.OFFSETS):
        for scheme, c in masks.LAYOUTS:  # the reference's sums keep the offset
            name = f"offset_{offset:g}_{where.replace(' ', '_')}_{scheme}_C{c}"
            change = partial(lambda where, offset, x: masks.batch_apart(where, offset, x), where)
            yield pairs(
                name,
                2,
                9 if c < 10 else 19,
                c,
                scheme,
                given={"count": 2, "seed": 5},
                change=partial(change, offset),
                factor=1.0,
                checks=(checks.masked,),
                backends=EVERYWHERE,
                quick=CPU if offset == 1e6 and c == 5 else False,
            )


def every_pair_dropped(how: str, x: Batch) -> Batch:
    n = x.contributions.shape[1]
    changed = {
        "present": {"present": torch.zeros(n, 2, dtype=torch.bool)},
        "weight": {"sample_weight": torch.zeros(n)},
        "labels": {"labels": x.labels * 0},
    }
    return replace(x, **changed[how])


def nothing() -> Iterator[Case]:
    zero = {"checks": (checks.zero,), "quick": True}
    for (scheme, own), dtype in itertools.product(SCHEMES, (torch.float32, torch.float64)):
        sizes = (
            [(0, 5, 3)] + [(1, 5, 3)] * (scheme != "table") + [(6, 5, 0)] * (scheme != "exhaustive")
        )
        for (n, _, count), c in itertools.product(sizes, (5, 80)):
            name = f"{called(scheme, own)}_N{n}_K{count}_C{c}_{short(dtype)}"
            given = {"own": own, "count": count, "present": True, "dtype": dtype}
            chosen = {**zero, "quick": c == 5 and dtype == torch.float32}
            yield pairs(name, 2, n, c, scheme, given=given, **chosen)
        if dtype == torch.float32:
            for how, c in itertools.product(("present", "weight", "labels"), (4, 70)):
                options = {"exclude": "same_label" if how == "labels" else "none"}
                name = f"dropped_by_{how}_{called(scheme, own)}_C{c}"
                chosen = {**zero, "quick": CPU if c == 4 else False}
                yield pairs(
                    name,
                    2,
                    7 if c == 4 else 20,
                    c,
                    scheme,
                    options=options,
                    change=partial(every_pair_dropped, how),
                    given={"own": own, "bias": False},
                    **chosen,
                )


def alone(how: str, i: int, x: Batch) -> Batch:
    """Row i, and for same_label the next, in no pair that counts."""
    if how == "present":
        x.present[i] = False  # neither a row nor a donor
        return x
    paired_off(x, i, i + 1 if how == "same_label" else i)
    if how == "same_label":
        x.labels[i + 1] = x.labels[i]
    else:
        x.sample_weight[i] = 0
    return x


def not_finite() -> Iterator[Case]:
    for (scheme, own), divergence in itertools.product(SCHEMES, DIVERGENCES):
        at = f"{called(scheme, own)}_{divergence}"
        for c, scale in itertools.product((1, 6, 40, 70), (1.5, 60.0)):
            options = {"divergence": divergence, "strategy": "collaborative"}
            quick = c == 6 and scale == 1.5 and scheme == "cyclic" and not own
            quick = quick and (divergence == "jsd" or NATIVE)
            yield pairs(
                f"finite_{at}_C{c}_{scale:g}",
                3,
                5,
                c,
                scheme,
                options=options,
                given={"own": own, "scale": scale, "count": 1},
                checks=(checks.not_finite,),
                quick=quick,
            )
        for c, i in itertools.product((6, 40, 70), (0, 5)):
            hows = {"present": "none"}
            if scheme == "table":
                hows |= {"weight": "self", "same_label": "same_label"}
            for how, exclude in hows.items():
                rows = [i, i + 1] if how == "same_label" else [i]
                check = partial(checks.anything_in, rows={"contributions": rows})
                given = {"own": own, "present": how == "present", "count": 2}
                given["weighted"] = how != "same_label"
                yield pairs(
                    f"anything_{at}_C{c}_{how}_{i}",
                    2,
                    8,
                    c,
                    scheme,
                    given=given,
                    change=partial(alone, how, i),
                    checks=(check,),
                    options={"divergence": divergence, "exclude": exclude},
                    quick=CPU if c == 6 and divergence == "jsd" else False,
                )


TABLES = {
    "far": [0, 1, 1 << 40, 3, 4],
    "before": [0, -1, 2, 3, 4],
    "past_the_end": [1, 2, 3, 4, 5],
    "twice": [1, 1, 2, 3, 4],
}
WRONG = {f"table_{name}": (None, [[[1, 2, 3, 4, 0], row]]) for name, row in TABLES.items()}
WRONG |= {f"order_{name}": (row, [[1, 2]]) for name, row in TABLES.items()}
WRONG |= {f"shift_{shift}": ([1, 2, 3, 4, 0], [[1, shift]]) for shift in (0, -1, 5, 1 << 40)}
WRONG["one_modality"] = None, [[[1, 2, 3, 4, 0]], [[1, 1, 2, 3, 4]]]


WRONG_IN_SHORT = ("table_far", "order_twice", "shift_0", "one_modality")


def wrong_donors() -> Iterator[Case]:
    for name, (order, donors) in WRONG.items():

        def change(x: Batch, order=order, donors=donors) -> Batch:
            order = None if order is None else torch.tensor(order)
            return replace(x, order=order, donors=torch.tensor(donors))

        check = (partial(checks.nan_or_raises, match="permutation|shift"),)
        for exclude, (path, emulator) in itertools.product(("none", "self"), PATHS.items()):
            if path != "_far_busy":
                options = {"strategy": "independent", "subsets": "single", "exclude": exclude}
                yield pairs(
                    f"wrong_{name}_{exclude}{path}",
                    2,
                    5,
                    3,
                    change=change,
                    factor=None,
                    options=options,
                    checks=check,
                    emulator=emulator,
                    quick=exclude == "self" and not path and (name in WRONG_IN_SHORT or NATIVE),
                )


def behaviour() -> Iterator[Case]:
    """Small inputs on every path, through everything that does not depend on numbers."""
    masked = {"present": True, "weighted": True, "count": 2}
    rest = {"checks": (bound, *checks.BEHAVIOUR), "options": {"clean_path": "routed"}}
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for scheme, c in (("table", 9), ("cyclic", 20), ("table", 40), ("exhaustive", 70)):
            given = {**masked, "dtype": dtype}
            quick = c == 9 and dtype == torch.float32
            quick = quick or (c == 20 and dtype == torch.bfloat16 and CPU)
            small = {"triton", "cuda"} & set(KERNELS) if c < 30 and dtype in DTYPES[:2] else set()
            yield pairs(
                f"behaviour_{scheme}_C{c}_{short(dtype)}",
                3,
                9,
                c,
                scheme,
                given=given,
                backends=(*CPU, *sorted(small)),
                quick=quick,
                **rest,
            )
        rest_of_all = {"checks": (bound, *checks.BEHAVIOUR[:6]), "backends": CPU}
        given = {"count": 20, "dtype": dtype}
        yield pairs(f"behaviour_N90_{short(dtype)}", 2, 90, 30, given=given, **rest_of_all)
        given = {"own": True, "dtype": dtype}
        yield pairs(
            f"behaviour_N90_own_{short(dtype)}",
            2,
            90,
            101,
            "table",
            given=given,
            options={"exclude": "self"},
            **rest_of_all,
        )
    for (scheme, own), divergence in itertools.product(SCHEMES, DIVERGENCES):
        given = {"own": own, "present": True, "weighted": True, "dtype": torch.float64}
        yield pairs(
            f"gradcheck_{called(scheme, own)}_{divergence}",
            3,
            5,
            3,
            scheme,
            given=given,
            checks=(checks.gradcheck,),
            quick=scheme == "table",
            options={"strategy": "collaborative", "divergence": divergence},
        )
    for (scheme, own), present, (path, emulator) in itertools.product(
        SCHEMES, (False, True), PATHS.items()
    ):
        given = {"own": own, "present": present, "count": 2}
        quick = NATIVE if scheme == "cyclic" and not present and path != "_far" else False
        yield pairs(
            f"looks_unequal_{called(scheme, own)}{'_present' * present}{path}",
            3 if own else 2,
            6,
            9,
            scheme,
            given=given,
            factor=None,
            emulator=emulator,
            checks=(bound, checks.looks_unequal, checks.adds_up),
            quick=quick,
        )


def instruction_sets() -> Iterator[Case]:
    for (scheme, own), divergence, c in itertools.product(
        SCHEMES[::2], DIVERGENCES, (1, 9, 31, 63, 65, 129)
    ):
        options, given = {"divergence": divergence}, {"own": own}
        yield pairs(
            f"isa_{scheme}_{divergence}_C{c}",
            3,
            21,
            c,
            scheme,
            given=given,
            options=options,
            backends=EVERYWHERE[3:],
            quick=divergence == "jsd" and c in (9, 65),
        )
    for dtype in DTYPES:
        given, options = {"present": True, "dtype": dtype}, {"exclude": "self"}
        yield pairs(
            f"isa_{short(dtype)}",
            2,
            33,
            20,
            "table",
            given=given,
            options=options,
            backends=EVERYWHERE[3:],
            quick=True,
        )
    for scale in (60.0, 1e4):
        yield pairs(
            f"isa_logits_{scale:g}", 2, 21, 40, given={"scale": scale}, backends=EVERYWHERE[3:]
        )


# N, K, C with just the 2^20 elements in both subsets from which the CUDA C++ kernels take pairs
# that are far by themselves (docs/math/permuted_divergence.md): one for each of their teams, by C
# and from 8192 rows on, and the last one they take
FAR_SHAPES = [
    *((4096, 22, 6), (1311, 20, 20), (701, 15, 50), (350, 15, 100), (8200, 2, 100)),
    *((257, 16, 128), (300, 11, 174), (129, 16, 256), (100, 14, 384), (64, 16, 512)),
    *((99, 7, 768), (75, 7, 1000), (64, 8, 1024)),
]


def far_pairs() -> Iterator[Case]:
    def case(name: str, n: int, k: int, c: int, scheme: str, **rest) -> Case:
        given = {"count": k, **rest.pop("given", {})}
        return pairs(f"far_{name}", 2, n, c, scheme, given=given, backends=("cuda",), **rest)

    dtypes = itertools.cycle((torch.float32, *HALVES))
    for (n, k, c), scheme in itertools.product(FAR_SHAPES, ("table", "cyclic")):
        dtype = next(dtypes)
        name = f"N{n}_K{k}_C{c}_{scheme}_{short(dtype)}"
        yield case(name, n, k, c, scheme, given={"dtype": dtype})
    # all pairs are left to the exact kernels, or some in most rows
    schemes = itertools.cycle(("cyclic", "table", "table", "cyclic"))
    for (n, k, c), (name, scale) in itertools.product(
        (FAR_SHAPES[1], FAR_SHAPES[6], FAR_SHAPES[11]), (("near", 0.01), ("mixed", 0.17))
    ):
        dtype, scheme = next(dtypes), next(schemes)
        name = f"{name}_N{n}_C{c}_{scheme}_{short(dtype)}"
        yield case(name, n, k, c, scheme, given={"scale": scale, "dtype": dtype})
    yield case("logits_60", 350, 15, 100, "table", given={"scale": 60.0})  # powers underflow
    # more than one run of permutations, and more than one chunk of them
    yield case("exhaustive_N128_C33", 128, 0, 33, "exhaustive")
    yield case("exhaustive_N3072_C2", 3072, 0, 2, "exhaustive")
    masked = {"present": True, "weighted": True}
    options = {"exclude": "same_label", "strategy": "collaborative"}
    yield case("masked_table", 300, 11, 174, "table", options=options, given=masked, factor=None)
    options, given = {"exclude": "self", "clean_path": "routed"}, {**masked, "scale": 0.17}
    yield case("masked_cyclic", 701, 15, 50, "cyclic", options=options, given=given)


def own_donors(classes: int, x: Batch) -> Batch:
    """Some permutations leave every row where it is; two rows are near each other."""
    x.donors[0, 0] = x.donors[0, 3] = torch.arange(9)
    x.contributions[:, 7] = x.contributions[:, 2]
    return x


def emulated() -> Iterator[Case]:
    """Small twins of what takes the CUDA library's other paths on a GPU."""

    def case(name: str, *shape, **rest) -> Case:
        return pairs(name, *shape, backends=("cuda",), here=("cuda",), **rest)

    # csrc's teams: lanes by the number of classes
    for c, divergence in itertools.product(
        (1, 7, 29, 50, 101, 174, 250, 400, 600, 1025), DIVERGENCES
    ):
        for scheme, factor in itertools.product(("table", "cyclic"), (1.0, None)):
            name = f"busy_C{c}_{scheme}_{divergence}{'_unequal' * (factor is None)}"
            yield case(
                name,
                2,
                3,
                c,
                scheme,
                given={"count": 2},
                factor=factor,
                emulator=BUSY,
                options={"divergence": divergence},
                quick=c in (7, 174) and divergence == "jsd",
            )
        if c in (29, 50, 101, 174):
            few = {"count": 16, "present": True}
            chosen = {"divergence": divergence}
            yield case(f"few_rows_C{c}_{divergence}", 2, 9, c, "table", given=few, options=chosen)
            yield case(
                f"few_rows_C{c}_{divergence}_self",
                2,
                9,
                c,
                "table",
                given=few,
                factor=None,
                options=chosen | {"exclude": "self"},
            )
    options = {"exclude": "same_label", "clean_path": "routed"}
    far_classes = (6, 20, 50, 101, 174, 250, 300, 500, 700, 1000)
    for (path, emulator), scheme, c, scale in itertools.product(
        PATHS.items(), ("table", "cyclic", "exhaustive"), far_classes, (0.01, 1.5, 30.0)
    ):
        given, name = {"count": 5, "scale": scale}, f"C{c}_{scheme}_{scale:g}{path or '_near'}"
        quick = c in (6, 174) and scale == 1.5 and scheme == "table" and path == "_far"
        yield case(f"pairs_{name}", 2, 7, c, scheme, given=given, emulator=emulator, quick=quick)
        given |= {"present": True, "weighted": True}
        yield case(
            f"pairs_masked_{name}",
            2,
            7,
            c,
            scheme,
            given=given,
            options=options,
            factor=None,
            emulator=emulator,
            quick=quick,
        )
    for (path, emulator), scheme, dtype in itertools.product(
        PATHS.items(), ("table", "cyclic"), DTYPES[:3]
    ):
        for n, c, k, scale in ((90, 11, 32, 1.5), (33, 40, 20, 8.0), (17, 174, 16, 1.5)):
            given = {"count": k, "dtype": dtype, "scale": scale}
            name = f"many_rows_N{n}_C{c}_{scheme}_{short(dtype)}{path}"
            yield case(name, 2, n, c, scheme, given=given, emulator=emulator)
    for (path, emulator), c in itertools.product(PATHS.items(), (6, 101, 500)):
        given = {"count": 6, "scale": 2.0}
        yield case(
            f"own_donors_C{c}{path}",
            2,
            9,
            c,
            "table",
            given=given,
            factor=None,
            change=partial(own_donors, c),
            emulator=emulator,
        )
        bits = (checks.dirty_memory, checks.not_finite)
        yield case(
            f"bits_C{c}{path}",
            2,
            12,
            c,
            "table",
            given={"count": 9},
            emulator=emulator,
            checks=bits if c < 500 else bits[:1],
        )
    yield case("far_by_itself_C520", 2, 64, 520, given={"count": 16})
    yield case("far_by_itself_C390", 2, 12, 390, given={"count": 9})
    for n, c in ((64, 3), (65, 40), (700, 9), (33000, 1)):  # csrc/cuda/sums.cu
        yield case(
            f"bias_N{n}",
            2,
            n,
            c,
            "table" if c > 1 else "cyclic",
            given={"count": 1},
            options={"divergence": "mse", "strategy": "collaborative"},
        )
    for n in (1, 2, 70, 300):
        yield case(f"rows_N{n}_table", 2, n, 3, "table", given={"count": 2})
        if n < 100:
            yield case(f"rows_N{n}_exhaustive", 2, n, 3, "exhaustive")


def fuzz(seed: int) -> Case:
    """A random batch, options and upstream gradient."""
    rng = random.Random(seed)
    scheme, own = rng.choice(SCHEMES)
    m, n = rng.choice([2, 2, 3, 4]), rng.choice([1, 2, 3, 8, 16, 17, 40])
    c = rng.choice([1, 2, 3, 8, 10, 31, 32, 33, 63, 64, 65, 100])
    given = {
        "own": own,
        "count": rng.choice([1, 2, 3, 9]),
        "scale": rng.choice([0.01, 0.3, 1.0, 3.0, 30.0, 1000.0]),
        "bias": rng.random() < 0.5,
        "present": rng.random() < 0.3,
        "weighted": rng.random() < 0.3,
        "dtype": rng.choice(DTYPES),
        "seed": seed,
    }
    options = {
        "strategy": rng.choice(STRATEGIES),
        "clean_path": rng.choice(CLEAN_PATHS),
        "subsets": rng.choice(["single", "all"]),
        "divergence": rng.choice(DIVERGENCES),
        "exclude": rng.choice(["none", "self", "same_label"]),
    }
    factor = rng.choice([None, 1.0, -0.3])
    return pairs(
        f"fuzz_{seed}",
        m,
        n,
        c,
        scheme,
        given=given,
        options=options,
        factor=factor,
        backends=CPU,
        quick=seed < 40,
    )


def cases() -> Iterator[Case]:
    groups = (donors, shapes, routing, dtypes, magnitudes, saturated, nothing, not_finite)
    groups += (wrong_donors, behaviour, instruction_sets, far_pairs, emulated)
    for group in groups:
        yield from group()
    yield from map(fuzz, range(150))
