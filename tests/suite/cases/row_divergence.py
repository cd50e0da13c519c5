"""row_divergence: R perturbed rows of N clean ones, C classes."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle, product

import masks
import torch
from divergences import DTYPES, Rows, make_rows

from mcr_fast._names import DIVERGENCES, OF_LOGITS
from suite import checks
from suite.cases import CAPABILITIES, CPU, EVERYWHERE, KERNELS, NATIVE, Case, fitting, named, take
from suite.checks import bound
from suite.subjects import LN2, Divergence

FLOAT32, BFLOAT16, FLOAT16, FLOAT64 = DTYPES
MADE = ("scale", "weighted", "dtype", "seed")


def rows(
    what: str,
    shape: tuple[int, int, int],
    *,
    change: Callable[[Rows], Rows] = lambda x: x,
    factor: float = -2.5,  # upstream
    divergence: str = "jsd",
    name: str | None = None,  # in place of what it is made of
    **rest,  # of make_rows, and of the case
) -> Case:
    """A case named by what it is made of."""
    made = take(rest, MADE)
    r, n, c = shape
    rest["backends"] = fitting(made.get("dtype"), rest.pop("backends", KERNELS))
    return Case(
        "row_divergence",
        name or named(what=what, R=r, N=n, C=c, divergence=divergence, **made),
        lambda: Divergence(change(make_rows(*shape, **made)), {"divergence": divergence}, factor),
        work=r * c,
        **rest,
    )


# R, N, C: aligned, ragged, one, several rows to a clean row, more than one tile, prime, every width
SHAPES = [
    *((16, 8, 16), (7, 3, 7), (1, 1, 1), (9, 4, 1), (5, 1, 2), (3, 9, 33), (100, 2, 31)),
    *((40, 40, 101), (6, 2, 513), (2, 1, 4100), (21, 8, 64), (21, 8, 65), (70, 40, 5)),
    *((3, 2, 174), (2, 2, 1025), (3, 2, 2049), (300, 40, 5), (60, 20, 174), (9, 4, 1025)),
]


def shapes() -> Iterator[Case]:
    for shape, weighted, d, dtype in product(SHAPES, (False, True), DIVERGENCES, DTYPES):
        c, quick = shape[2], False
        if dtype == FLOAT32 and weighted == (d != "mse") and c in (7, 174) and shape[0] < 10:
            quick = True
        elif c == 16 and weighted and d == "jsd":
            quick = True if dtype == BFLOAT16 else dtype == FLOAT16 and NATIVE
        rest = {"quick": quick, "thorough": c > 1000 and dtype == FLOAT32}
        if dtype == FLOAT32 or shape[0] * c < 700:
            yield rows("shape", shape, weighted=weighted, divergence=d, dtype=dtype, **rest)
    for dtype in (FLOAT32, BFLOAT16):
        yield rows("production", (8192, 256, 101), dtype=dtype)
        yield rows("production", (16384, 512, 1000), dtype=dtype)
    for n, d, dtype in product((4, 0), DIVERGENCES, (FLOAT32, FLOAT64)):
        rest = {"checks": (bound, checks.zero), "quick": d == "jsd"}
        yield rows("none", (0, n, 5), dtype=dtype, divergence=d, **rest)


def dtypes() -> Iterator[Case]:
    """The wider of the two decides the arithmetic; each gradient has its own input's dtype."""
    for first, second, d, c in product(DTYPES, DTYPES, DIVERGENCES, (9, 37, 300, 1030, 4101)):
        if c > 50 and (d != "jsd" or first != second):
            continue

        def two(x: Rows, first=first, second=second) -> Rows:
            return replace(x, perturbed=x.perturbed.to(first), clean=x.clean.to(second))

        rest = {"checks": (bound, checks.dtypes_of_inputs), "change": two, "weighted": True}
        rest["backends"] = CPU if FLOAT64 in (first, second) else KERNELS
        quick, what = c == 9 and d == "jsd" and CPU, named(what="of", first=first, clean=second)
        yield rows(what, (9, 4, c), divergence=d, quick=quick, **rest)


def magnitudes() -> Iterator[Case]:
    for scale, d, dtype, c in product((8.0, 60.0, 300.0, 1e4), DIVERGENCES, DTYPES, (1, 2, 5, 66)):
        quick = dtype == FLOAT32 and scale == 1e4 and c in (5, 66) and d == "jsd"
        yield rows("logits", (8, 3, c), scale=scale, dtype=dtype, divergence=d, quick=quick)
    for delta, d, c in product((1e-2, 1e-3, 1e-4, 1e-5), DIVERGENCES, (5, 33, 101)):

        def near(x: Rows, delta=delta) -> Rows:
            return replace(x, perturbed=x.clean[x.rows] + delta * x.perturbed)

        check, quick = partial(checks.keeps_digits, delta=delta), delta == 1e-4 and c == 33
        rest = {"change": near, "checks": (check,), "quick": quick and (d == "jsd" or CPU)}
        yield rows(f"near_{delta:g}", (20, 6, c), scale=1.0, divergence=d, **rest)


def one_class(x: Rows, size: float, shift: int) -> Rows:
    clean = size * torch.eye(12)
    return Rows(clean.roll(shift, 0), clean, torch.arange(12))


def no_share(x: Rows, same: bool) -> Rows:
    """Class 3 has it all; the others' logits differ, or those of all classes by a constant."""
    clean = -1e4 - 100 * x.clean.abs()
    clean[:, 3] = 0
    perturbed = clean - 50
    if same:
        perturbed[:, 3] = 0
    return Rows(perturbed, clean, torch.arange(8))


def equal(x: Rows) -> Rows:
    return replace(x, perturbed=x.clean[x.rows])


def shifted(x: Rows) -> Rows:
    """The same softmax, by logits that a constant is added to."""
    return replace(x, perturbed=x.clean + x.perturbed[:, :1])


def saturated() -> Iterator[Case]:
    for size, (shift, value) in product((80.0, 1e4), ((0, 0.0), (1, LN2))):
        rest = {"change": partial(one_class, size=size, shift=shift), "quick": True}
        check = partial(checks.gives, values=[value])
        yield rows(f"one_class_{size:g}_{shift}", (12, 12, 12), checks=(check,), **rest)
    for same, check in ((True, checks.zero), (False, checks.next_to_zero)):
        rest = {"change": partial(no_share, same=same), "checks": (check,), "quick": CPU}
        yield rows(named(what="underflow", same=same), (8, 8, 21), **rest)
    for d, c in product(DIVERGENCES, (3, 7, 40)):
        check = partial(checks.next_to_zero, value=1e-14, grad=1e-8)
        rest = {"change": equal, "checks": (check,), "quick": c == 7 and (d == "jsd" or NATIVE)}
        yield rows("equal", (30, 7, c), divergence=d, **rest)
    for seed, c, scale in product(range(30), (1, 2, 20), (0.01, 1.0)):
        rest = {"change": shifted, "checks": (checks.next_to_zero,), "backends": CPU}
        yield rows("shifted", (1, 1, c), seed=seed, scale=scale, quick=seed < 3, **rest)


def masked() -> Iterator[Case]:
    everywhere = {"backends": (*EVERYWHERE, "reference"), "factor": 1.0, "quick": CPU}
    for d, side, mask in product(OF_LOGITS, masks.ROW_SIDES, masks.MASKS):
        what = named(what="mask", mask=mask, side=side)
        for c, dtype in ((5, FLOAT32), (40, FLOAT32), (5, FLOAT64), (5, BFLOAT16)):
            if mask != {FLOAT64: -1e9, BFLOAT16: torch.finfo(dtype).min}.get(dtype, mask):
                continue

            def change(_: Rows, side=side, mask=mask, c=c, dtype=dtype) -> Rows:
                return masks.masked_rows(side, mask, c, dtype)

            rest = everywhere | {"quick": mask == -1e9 and CPU}
            rest |= {"change": change, "checks": (checks.masked,), "dtype": dtype}
            rest["interpreted"] = c == 5
            yield rows(what, (11, 4, c), divergence=d, **rest)
    for d in OF_LOGITS:
        yield rows("agrees", (8, 8, 4), seed=2, divergence=d, checks=(checks.common_class,),
                   **everywhere)  # fmt: skip
    for side, offset, scale in product(("both", "perturbed", "clean"), masks.OFFSETS, (0.05, 1.0)):

        def apart(_: Rows, side=side, offset=offset, scale=scale) -> Rows:
            return masks.rows_apart(side, offset, scale)

        check, what = partial(checks.masked, size=4 * scale), named(what="offset", side=side)
        rest = everywhere | {"change": apart, "checks": (check,), "quick": offset == 1e6 and CPU}
        yield rows(f"{what}_{offset:g}", (32, 8, 10), scale=scale, **rest)
    for d, value in product(DIVERGENCES, (torch.inf, -torch.inf, torch.nan)):

        def infinite(_: Rows, value=value) -> Rows:
            return masks.masked_rows("both", value, 5, FLOAT32)

        rest = everywhere | {"change": infinite, "checks": (checks.all_nan,)}
        rest["quick"] = d == "jsd" and value < 0
        yield rows(f"infinite_{value}", (11, 4, 5), divergence=d, **rest)
    for size in (1e4, 1e9, 1e15):  # no saturation: it has no probabilities

        def huge(x: Rows, size=size) -> Rows:
            x.perturbed[:, 1] = size
            return x

        rest = everywhere | {"change": huge, "checks": (checks.close,), "divergence": "mse"}
        yield rows(f"huge_{size:g}", (6, 3, 4), seed=2, **rest)


def with_weight(x: Rows, weight: torch.Tensor) -> Rows:
    return replace(x, row_weight=weight.to(x.perturbed.dtype))


def weights() -> Iterator[Case]:
    for d in DIVERGENCES:
        none = {"change": partial(with_weight, weight=torch.zeros(9)), "checks": (checks.zero,)}
        yield rows("no_weight", (9, 4, 6), divergence=d, quick=d == "jsd", **none)
        rest = {"weighted": True, "dtype": FLOAT64, "quick": True, "divergence": d}
        yield rows("order", (60, 7, 11), checks=(checks.order_of_rows,), **rest)
        if d != "jsd":
            weight = torch.tensor([1.0, 1e-45, 1.0, 1e-45, 0.5])
            rest = {"change": partial(with_weight, weight=weight), "backends": CPU, "quick": True}
            yield rows("tiny", (5, 2, 7), divergence=d, checks=(checks.tiny_weights,), **rest)

    def thirds(x: Rows) -> Rows:
        return replace(x, rows=torch.randint(10, (12,)) * 3)

    rest = {"change": thirds, "checks": (checks.rows_without_any,), "quick": True}
    yield rows("few_clean", (12, 30, 6), **rest)


def not_finite() -> Iterator[Case]:
    for d, c, scale, dtype in product(DIVERGENCES, (1, 6, 40), (2.0, 60.0), (FLOAT32, FLOAT64)):
        rest = {"dtype": dtype, "divergence": d}
        rest["quick"] = c == 6 and scale == 2.0 and (d == "jsd" or NATIVE)
        yield rows("bad", (20, 5, c), scale=scale, checks=(checks.not_finite,), **rest)
        if scale != 2.0:
            continue
        # every row of clean row 4 is dropped, and a third of the others
        dropped = make_rows(40, 9, c, dtype=dtype).rows == 4
        dropped |= torch.arange(40) % 3 == 0
        where = {"perturbed": dropped.nonzero().flatten().tolist(), "clean": [4]}
        change = partial(with_weight, weight=torch.where(dropped, 0.0, 1.5))
        check = partial(checks.anything_in, rows=where)
        yield rows("anything", (40, 9, c), change=change, checks=(check,), **rest)
    for row, count in product((-1, 4, 1 << 40), (5, 300)):

        def wrong(x: Rows, row=row) -> Rows:
            x.rows[2] = row
            return x

        check = partial(checks.nan_or_raises, match=rf"rows\[2\] is {row}, but clean has 4 rows")
        rest = {"change": wrong, "checks": (check,), "quick": count == 5 or NATIVE}
        yield rows(f"wrong_row_{row}", (count, 4, 3), **rest)


def behaviour() -> Iterator[Case]:
    """Small inputs of every divergence, through everything that does not depend on numbers."""
    for dtype, (d, c) in product(DTYPES, zip(DIVERGENCES, cycle((9, 40, 16)), strict=False)):
        quick = c == 9 and (dtype == FLOAT32 or (dtype == BFLOAT16 and CPU))
        rest = {"weighted": True, "dtype": dtype, "quick": quick}
        rest["backends"] = KERNELS if dtype in (FLOAT32, BFLOAT16) else CPU
        yield rows("behaviour", (20, 7, c), divergence=d, checks=(bound, *checks.BEHAVIOUR), **rest)
    for dtype in DTYPES:
        rest = {"weighted": True, "dtype": dtype, "backends": CPU}
        yield rows("behaviour", (700, 90, 101), checks=(bound, *checks.BEHAVIOUR[:6]), **rest)
    for weighted, d in product((False, True), DIVERGENCES):
        rest = {"dtype": FLOAT64, "checks": (checks.gradcheck,), "quick": True}
        yield rows("gradcheck", (6, 3, 4), weighted=weighted, divergence=d, **rest)
    rest = {"weighted": True, "backends": CAPABILITIES}
    for d, c, dtype in product(DIVERGENCES, (1, 4, 9, 16, 31, 129), DTYPES):
        yield rows("isa", (30, 7, c), divergence=d, dtype=dtype, quick=c == 9, **rest)
    for scale in (60.0, 1e4):
        yield rows("isa", (30, 7, 20), scale=scale, quick=True, **rest)


def emulated() -> Iterator[Case]:
    """Small twins of what takes the CUDA library's other paths on a GPU."""
    case = partial(rows, backends=("cuda",), here=("cuda",))
    for c, d in product((1, 7, 29, 50, 101, 174, 250, 400, 600, 1025), DIVERGENCES):
        rest = {"emulator": {"MCR_EMULATED_BUSY": "1"}, "quick": c in (7, 174) and d == "jsd"}
        yield case("busy", (5, 3, c), divergence=d, **rest)

    def one_without(x: Rows) -> Rows:
        x.rows[x.rows == 1] = 2
        return x

    # teams of which several share a clean row's perturbed ones
    for c, d, dtype in product((6, 20, 50, 101, 174, 250), DIVERGENCES, DTYPES[:3]):
        quick = c == 50 and d == "jsd" and dtype == FLOAT32
        rest = {"checks": (bound, checks.dirty_memory), "quick": quick, "dtype": dtype, "seed": c}
        yield case("parts", (140, 3, c), change=one_without, weighted=True, divergence=d, **rest)
        if dtype == FLOAT32:
            weight = torch.arange(140).ge(70).to(dtype)
            check = partial(checks.anything_in, rows={"perturbed": list(range(70))})
            rest = {"change": partial(with_weight, weight=weight), "checks": (check,), "seed": c}
            yield case("parts_anything", (140, 3, c), divergence=d, **rest)
    yield case("sums_in_two_stages", (34000, 33000, 1), divergence="mse")
    for n in (1, 2, 70, 300):
        yield case("many", (2 * n, n, 3))


def fuzz(seed: int) -> Case:
    """Random rows, options and upstream gradient."""
    rng = random.Random(seed)
    return rows(
        "",
        (
            rng.choice([1, 2, 7, 8, 9, 40]),
            rng.choice([1, 2, 5, 30]),
            rng.choice([1, 2, 3, 4, 8, 10, 16, 17, 33, 100]),
        ),
        name=f"fuzz_{seed}",
        scale=rng.choice([0.01, 0.3, 1.0, 3.0, 30.0, 1000.0]),
        weighted=rng.random() < 0.4,
        dtype=rng.choice(DTYPES),
        seed=seed,
        factor=rng.choice([1.0, -0.3, 7.0]),
        divergence=rng.choice(DIVERGENCES),
        backends=CPU,
        quick=seed < 40,
    )


def cases() -> Iterator[Case]:
    groups = (shapes, dtypes, magnitudes, saturated, masked, weights, not_finite, behaviour)
    for group in (*groups, emulated):
        yield from group()
    yield from map(fuzz, range(150))
