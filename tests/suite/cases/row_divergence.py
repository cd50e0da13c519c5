"""row_divergence: R perturbed rows of N clean ones, C classes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle, product

import masks
import torch
from divergences import DTYPES, Rows, make_rows

from mcr_fast._names import DIVERGENCES, OF_LOGITS
from mcr_fast.ops.registry import OPS
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
MADE = ("scale", "weighted", "dtype", "seed")
MAX_CLASSES = OPS["row_divergence"].max_classes["triton"]


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
    backends = fitting(made.get("dtype"), rest.pop("backends", KERNELS))
    rest["backends"] = tuple(b for b in backends if b != "triton" or c <= MAX_CLASSES)
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
    *((40, 40, 101), (6, 2, 513), (2, 1, 4100), (21, 8, 64), (21, 8, 65), (300, 40, 5)),
    *((3, 2, 174), (60, 20, 174), (2, 2, 1025), (3, 2, 2049)),
]


def shapes() -> Iterator[Case]:
    for shape in ((7, 3, 7), (3, 2, 174)):
        yield rows("quick", shape, weighted=True, quick=True, thorough=True)
    yield rows("shape", (9, 4, 1025), dtype=FLOAT32, divergence="jsd", thorough=True)
    for few, (shape, weighted, d, dtype) in pairwise(SHAPES, (False, True), DIVERGENCES, DTYPES):
        rest = {"quick": few and NATIVE if shape[2] < 200 else few and CPU, "interpreted": few}
        yield rows("shape", shape, weighted=weighted, divergence=d, dtype=dtype, **rest)
    yield rows("production", (8192, 256, 101), dtype=FLOAT32)
    yield rows("production", (16384, 512, 1000), dtype=FLOAT32)
    yield rows("production", (16384, 512, 1000), dtype=BFLOAT16, thorough=True)
    for few, (n, d, dtype) in pairwise((4, 0), DIVERGENCES, (FLOAT32, FLOAT64)):
        rest = {"checks": (bound, checks.zero), "quick": few}
        yield rows("none", (0, n, 5), dtype=dtype, divergence=d, **rest)


def dtypes() -> Iterator[Case]:
    """The wider of the two decides the arithmetic; each gradient has its own input's dtype."""
    for few, (first, second, d, c) in pairwise(DTYPES, DTYPES, DIVERGENCES, (9, 37, 300, 1030)):

        def two(x: Rows, first=first, second=second) -> Rows:
            return replace(x, perturbed=x.perturbed.to(first), clean=x.clean.to(second))

        rest = {"checks": (bound, checks.dtypes_of_inputs), "change": two, "weighted": True}
        rest["backends"] = CPU if FLOAT64 in (first, second) else KERNELS
        rest |= {"quick": few and CPU, "interpreted": c < 50}
        yield rows(named(what="of", first=first, clean=second), (9, 4, c), divergence=d, **rest)


def magnitudes() -> Iterator[Case]:
    for few, (scale, d, c, dtype) in pairwise(
        (1e4, 8.0, 60.0, 300.0), DIVERGENCES, (5, 66, 1, 2), DTYPES
    ):
        rest = {"dtype": dtype, "divergence": d, "quick": few and CPU}
        yield rows("logits", (8, 3, c), scale=scale, **rest)
    for few, (delta, d, c) in pairwise((1e-4, 1e-2, 1e-3, 1e-5), DIVERGENCES, (33, 5, 101)):

        def near(x: Rows, delta=delta) -> Rows:
            return replace(x, perturbed=x.clean[x.rows] + delta * x.perturbed)

        check = partial(checks.keeps_digits, delta=delta)
        rest = {"change": near, "checks": (check,), "quick": few and (d == "jsd" or CPU)}
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
    for few, (seed, c, scale) in pairwise(range(10), (1, 2, 20), (0.01, 1.0)):
        rest = {"change": shifted, "checks": (checks.next_to_zero,), "backends": CPU}
        yield rows("shifted", (1, 1, c), seed=seed, scale=scale, quick=few, **rest)


def masked() -> Iterator[Case]:
    rest = {"factor": 1.0, "checks": (checks.masked,)}
    for few, (d, side, mask, (c, dtype)) in pairwise(
        OF_LOGITS, masks.ROW_SIDES, masks.MASKS,
        ((5, FLOAT32), (40, FLOAT32), (5, FLOAT64), (5, BFLOAT16)),
    ):  # fmt: skip
        if dtype == BFLOAT16:
            mask = max(mask, torch.finfo(dtype).min)

        def change(_: Rows, side=side, mask=mask, c=c, dtype=dtype) -> Rows:
            return masks.masked_rows(side, mask, c, dtype)

        made = {"change": change, "dtype": dtype, "divergence": d, "quick": few and CPU}
        made["backends"] = EVERYWHERE if few else KERNELS
        yield rows(named(what="mask", mask=mask, side=side), (11, 4, c), **made, **rest)
    for d in OF_LOGITS:
        agrees = {"checks": (checks.common_class,), "backends": EVERYWHERE, "quick": CPU}
        yield rows("agrees", (8, 8, 4), seed=2, divergence=d, **agrees)
    for few, (side, offset, scale) in pairwise(
        ("both", "perturbed", "clean"), masks.OFFSETS, (0.05, 1.0)
    ):

        def apart(_: Rows, side=side, offset=offset, scale=scale) -> Rows:
            return masks.rows_apart(side, offset, scale)

        made = {"change": apart, "checks": (partial(checks.masked, size=4 * scale),)}
        made |= {"backends": EVERYWHERE if few else KERNELS, "quick": few and CPU, "factor": 1.0}
        what = named(what="offset", side=side)
        yield rows(f"{what}_{offset:g}", (32, 8, 10), scale=scale, **made)
    for few, (d, value) in pairwise(DIVERGENCES, (-torch.inf, torch.inf, torch.nan)):

        def infinite(_: Rows, value=value) -> Rows:
            return masks.masked_rows("both", value, 5, FLOAT32)

        made = {"change": infinite, "checks": (checks.all_nan,), "divergence": d}
        made |= {"backends": EVERYWHERE if few else KERNELS, "quick": d == "jsd" and value < 0}
        yield rows(f"infinite_{value}", (11, 4, 5), **made)
    of_numbers = [d for d in DIVERGENCES if d not in OF_LOGITS]
    for size, d in product((1e4, 1e9, 1e15), of_numbers):  # no saturation: no probabilities

        def huge(x: Rows, size=size) -> Rows:
            x.perturbed[:, 1] = size
            return x

        rest = {"change": huge, "checks": (checks.close,), "divergence": d, "quick": CPU}
        rest["backends"] = EVERYWHERE
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

    # the weights of one clean row's perturbed ones, which add up to more than each has digits for
    alike = partial(with_weight, weight=torch.full((800,), 0.1))
    yield rows("one_clean", (800, 1, 3), change=alike, checks=(bound,), quick=NATIVE)

    def thirds(x: Rows) -> Rows:
        return replace(x, rows=torch.randint(10, (12,)) * 3)

    rest = {"change": thirds, "checks": (checks.rows_without_any,), "quick": True}
    yield rows("few_clean", (12, 30, 6), **rest)


def not_finite() -> Iterator[Case]:
    for few, (d, c, scale, dtype) in pairwise(
        DIVERGENCES, (6, 1, 40), (2.0, 60.0), (FLOAT32, FLOAT64)
    ):
        rest = {"dtype": dtype, "divergence": d, "quick": few}
        yield rows("bad", (20, 5, c), scale=scale, checks=(checks.not_finite,), **rest)
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
        rest["interpreted"] = count == 5
        yield rows(f"wrong_row_{row}", (count, 4, 3), **rest)


def behaves() -> Iterator[Case]:
    """Small inputs of every divergence, through everything that does not depend on numbers."""
    rest = {"weighted": True, "checks": (bound, *behaviour.BEHAVIOUR)}
    yield rows("behaviour", (20, 7, 9), quick=True, thorough=True, **rest)
    yield rows("behaviour", (20, 7, 9), dtype=BFLOAT16, quick=CPU, **rest)
    rest["checks"] = (bound, *behaviour.BEHAVIOUR[:6])
    for d, c, dtype in zip(DIVERGENCES[1:], cycle((40, 16)), cycle((FLOAT16, FLOAT32))):
        yield rows("behaviour", (20, 7, c), divergence=d, dtype=dtype, **rest)
    for dtype in DTYPES:
        yield rows("behaviour", (700, 90, 101), dtype=dtype, backends=CPU, **rest)
    for weighted, d in product((False, True), DIVERGENCES):
        rest = {"dtype": FLOAT64, "checks": (behaviour.gradcheck,), "quick": True}
        yield rows("gradcheck", (6, 3, 4), weighted=weighted, divergence=d, **rest)
    for few, (d, c, dtype, scale) in pairwise(
        DIVERGENCES, (9, 1, 4, 16, 31, 129), DTYPES, (2.0, 60.0, 1e4)
    ):
        rest = {"weighted": True, "backends": CAPABILITIES, "quick": few}
        yield rows("isa", (30, 7, c), divergence=d, dtype=dtype, scale=scale, **rest)


def emulated() -> Iterator[Case]:
    """Small twins of what takes the CUDA library's other paths on a GPU."""
    case = partial(rows, backends=("cuda",), here=("cuda",))
    divergences = cycle(DIVERGENCES)
    for c in (7, 1, 29, 50, 101, 174, 250, 400, 600, 1025):
        rest = {"emulator": {"kBusyThreads": 1, "kFewRows": 0}, "quick": c in (7, 174)}
        yield case("busy", (5, 3, c), divergence=next(divergences), **rest)

    def one_without(x: Rows) -> Rows:
        x.rows[x.rows == 1] = 2
        return x

    # teams of which several share a clean row's perturbed ones
    for few, (c, d, dtype) in pairwise((50, 6, 20, 101, 174, 250), DIVERGENCES, DTYPES[:3]):
        made = {"weighted": True, "divergence": d, "dtype": dtype, "quick": few and c < 100}
        both = (bound, behaviour.dirty_memory)
        yield case("parts", (140, 3, c), change=one_without, checks=both, seed=c, **made)
        if few:
            weight = torch.arange(140).ge(70).to(FLOAT32)
            check = partial(checks.anything_in, rows={"perturbed": list(range(70))})
            rest = {"change": partial(with_weight, weight=weight), "checks": (check,), "seed": c}
            yield case("parts_anything", (140, 3, c), divergence=d, **rest)
    yield case("sums_in_two_stages", (34000, 33000, 1), divergence="mse")
    for n in (1, 2, 70, 300):
        yield case("many", (2 * n, n, 3))
        yield case("sorted", (2 * n, n, 3), emulator={"kFewRows": 0})


def cases() -> Iterator[Case]:
    groups = (shapes, dtypes, magnitudes, saturated, masked, weights, not_finite, behaves)
    for group in (*groups, emulated):
        yield from group()
