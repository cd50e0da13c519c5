"""row_divergence: R perturbed rows of N clean ones, C classes."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import masks
import torch
from divergences import DIVERGENCES, DTYPES, Rows, make_rows

from suite import checks
from suite.cases import CPU, EVERYWHERE, KERNELS, NATIVE, Case
from suite.checks import bound
from suite.subjects import LN2, Divergence

HALVES = (torch.bfloat16, torch.float16)


def rows(
    name: str,
    r: int,
    n: int,
    c: int,
    *,
    given: dict | None = None,  # what else make_rows takes
    change: Callable[[Rows], Rows] = lambda x: x,
    factor: float = -2.5,  # upstream
    divergence: str = "jsd",
    **rest,  # of the case
) -> Case:
    if (given or {}).get("dtype") == torch.float64:
        rest.setdefault("backends", CPU)

    def make() -> Divergence:
        x = change(make_rows(r, n, c, **(given or {})))
        return Divergence(x, {"divergence": divergence}, factor)

    return Case("row_divergence", name, make, work=r * c, **rest)


def short(dtype: torch.dtype) -> str:
    return str(dtype)[6:]


# R, N, C: aligned, ragged, one, several rows to a clean row, more than one tile, prime, every width
SHAPES = [
    *((16, 8, 16), (7, 3, 7), (1, 1, 1), (9, 4, 1), (5, 1, 2), (3, 9, 33), (100, 2, 31)),
    *((40, 40, 101), (6, 2, 513), (2, 1, 4100), (21, 8, 64), (21, 8, 65), (70, 40, 5)),
    *((3, 2, 174), (2, 2, 1025), (3, 2, 2049), (300, 40, 5), (60, 20, 174), (9, 4, 1025)),
]


def shapes() -> Iterator[Case]:
    for (r, n, c), weighted, divergence, dtype in itertools.product(
        SHAPES, (False, True), DIVERGENCES, DTYPES
    ):
        name = f"R{r}_N{n}_C{c}{'_weighted' * weighted}_{divergence}_{short(dtype)}"
        given = {"weighted": weighted, "dtype": dtype}
        if dtype != torch.float32 and r * c > 700:
            continue
        quick = (
            c in (7, 31, 174)
            and r < 200
            and dtype == torch.float32
            and weighted == (divergence != "mse")
        )
        quick = quick and (c != 31 or NATIVE)
        if c == 16 and weighted and divergence == "jsd":
            quick = {torch.bfloat16: True, torch.float16: NATIVE}.get(dtype, False)
        yield rows(name, r, n, c, given=given, divergence=divergence, quick=quick)
    for dtype in DTYPES[:2]:
        name, given = f"production_{short(dtype)}", {"dtype": dtype}
        yield rows(name, 256 * 32, 256, 101, given=given)
        yield rows(f"{name}_C1000", 16384, 512, 1000, given=given)
    for r, n in ((0, 4), (0, 0)):
        for divergence, dtype in itertools.product(DIVERGENCES, (torch.float32, torch.float64)):
            name = f"R0_N{n}_{divergence}_{short(dtype)}"
            yield rows(
                name,
                r,
                n,
                5,
                given={"dtype": dtype},
                divergence=divergence,
                checks=(bound, checks.zero),
                quick=divergence == "jsd",
            )


def dtypes() -> Iterator[Case]:
    for (first, second), divergence in itertools.product(
        itertools.product(DTYPES, repeat=2), DIVERGENCES
    ):
        backends = CPU if torch.float64 in (first, second) else KERNELS

        def two(x: Rows, first=first, second=second) -> Rows:
            return replace(x, perturbed=x.perturbed.to(first), clean=x.clean.to(second))

        for c in (9, 37, 300, 1030, 4101):
            if c < 50 or divergence == "jsd" and first == second:
                name = f"{short(first)}_clean_{short(second)}_{divergence}_C{c}"
                yield rows(
                    name,
                    9,
                    4,
                    c,
                    change=two,
                    given={"weighted": True},
                    backends=backends,
                    divergence=divergence,
                    checks=(bound, checks.dtypes_of_inputs),
                    quick=CPU if c == 9 and divergence == "jsd" else False,
                )


def magnitudes() -> Iterator[Case]:
    for scale, divergence, dtype, c in itertools.product(
        (8.0, 60.0, 300.0, 1e4), DIVERGENCES, DTYPES, (1, 2, 5, 66)
    ):
        name = f"logits_{scale:g}_{divergence}_{short(dtype)}_C{c}"
        given = {"scale": scale, "dtype": dtype}
        quick = dtype == torch.float32 and scale == 1e4 and c in (5, 66) and divergence == "jsd"
        yield rows(name, 8, 3, c, given=given, divergence=divergence, quick=quick)
    for delta, divergence, c in itertools.product(
        (1e-2, 1e-3, 1e-4, 1e-5), DIVERGENCES, (5, 33, 101)
    ):

        def near(x: Rows, delta=delta) -> Rows:
            return replace(x, perturbed=x.clean[x.rows] + delta * x.perturbed)

        yield rows(
            f"near_{delta:g}_{divergence}_C{c}",
            20,
            6,
            c,
            given={"scale": 1.0},
            change=near,
            checks=(partial(checks.keeps_digits, delta=delta),),
            divergence=divergence,
            quick=delta == 1e-4 and c == 33 and divergence == "jsd",
        )


def one_class(size: float, shift: int, x: Rows) -> Rows:
    clean = size * torch.eye(12)
    return Rows(clean.roll(shift, 0), clean, torch.arange(12))


def no_share(above: float, x: Rows) -> Rows:
    """Nothing but class 3 has a share; perturbed logits lie lower, or differ by a constant."""
    clean = -1e4 - 100 * x.clean.abs()
    clean[:, 3] = 0
    perturbed = clean - 50
    perturbed[:, 3] = above
    return Rows(perturbed, clean, torch.arange(8))


def equal(x: Rows) -> Rows:
    return replace(x, perturbed=x.clean[x.rows])


def shifted(x: Rows) -> Rows:
    """The same softmax, by logits that a constant is added to."""
    return replace(x, perturbed=x.clean + x.perturbed[:, :1])


def saturated() -> Iterator[Case]:
    for size, (shift, value) in itertools.product((80.0, 1e4), ((0, 0.0), (1, LN2))):
        yield rows(
            f"one_class_{size:g}_{shift}",
            12,
            12,
            12,
            change=partial(one_class, size, shift),
            checks=(partial(checks.gives, values=[value]),),
            quick=True,
        )
    small = (checks.next_to_zero,)
    yield rows("underflow", 8, 8, 21, change=partial(no_share, 0), checks=(checks.zero,))
    yield rows("underflow_shifted", 8, 8, 21, change=partial(no_share, -50), checks=small)
    for divergence, c in itertools.product(DIVERGENCES, (3, 7, 40)):
        yield rows(
            f"equal_{divergence}_C{c}",
            30,
            7,
            c,
            change=equal,
            divergence=divergence,
            checks=(partial(checks.next_to_zero, value=1e-14, grad=1e-8),),
            quick=c == 7,
        )
    for seed, c, scale in itertools.product(range(30), (1, 2, 20), (0.01, 1.0)):
        given = {"seed": seed, "scale": scale}
        yield rows(
            f"shifted_{seed}_C{c}_{scale:g}",
            1,
            1,
            c,
            given=given,
            change=shifted,
            checks=small,
            backends=CPU,
            quick=seed < 3,
        )
    everywhere = {"backends": (*EVERYWHERE, "reference"), "factor": 1.0}
    for divergence in ("jsd", "binary_jsd"):
        for side, mask in itertools.product(masks.ROW_SIDES, masks.MASKS):
            name = f"mask_{mask:.2g}_{side.replace(' ', '_')}_{divergence}"
            for c, dtype in (
                (5, torch.float32),
                (40, torch.float32),
                (5, torch.float64),
                (5, torch.bfloat16),
            ):
                if dtype == torch.bfloat16 and mask != torch.finfo(dtype).min:
                    continue
                if dtype == torch.float64 and mask != -1e9:
                    continue
                chosen = {**everywhere}
                if dtype == torch.float64:
                    chosen["backends"] = tuple(
                        b for b in everywhere["backends"] if b not in ("triton", "cuda")
                    )

                def change(_: Rows, side=side, mask=mask, c=c, dtype=dtype) -> Rows:
                    return masks.masked_rows(side, mask, c, dtype)

                yield rows(
                    f"{name}_C{c}_{short(dtype)}",
                    11,
                    4,
                    c,
                    change=change,
                    divergence=divergence,
                    checks=(checks.masked,),
                    quick=CPU if mask == -1e9 else False,
                    **chosen,
                )
        yield rows(
            f"agrees_{divergence}",
            8,
            8,
            4,
            given={"seed": 2},
            divergence=divergence,
            checks=(checks.common_class,),
            quick=CPU,
            **everywhere,
        )
    for side, offset, scale in itertools.product(
        ("both", "perturbed", "clean"), masks.OFFSETS, (0.05, 1.0)
    ):

        def apart(_: Rows, side=side, offset=offset, scale=scale) -> Rows:
            return masks.rows_apart(side, offset, scale)

        yield rows(
            f"offset_{offset:g}_{side}_{scale:g}",
            32,
            8,
            10,
            change=apart,
            checks=(partial(checks.masked, size=4 * scale),),
            quick=CPU if offset == 1e6 else False,
            **everywhere,
        )
    for size in (1e4, 1e9, 1e15):  # no saturation: it has no probabilities

        def huge(x: Rows, size=size) -> Rows:
            x.perturbed[:, 1] = size
            return x

        yield rows(
            f"huge_{size:g}",
            6,
            3,
            4,
            given={"seed": 2},
            change=huge,
            divergence="mse",
            checks=(checks.close,),
            quick=CPU,
            **everywhere,
        )


def weights() -> Iterator[Case]:
    def with_weight(weight: torch.Tensor, x: Rows) -> Rows:
        return replace(x, row_weight=weight.to(x.perturbed.dtype))

    for divergence in DIVERGENCES:
        none = partial(with_weight, torch.zeros(9))
        yield rows(
            f"no_weight_{divergence}",
            9,
            4,
            6,
            change=none,
            divergence=divergence,
            checks=(checks.zero,),
            quick=divergence == "jsd",
        )
        if divergence != "jsd":
            tiny = partial(with_weight, torch.tensor([1.0, 1e-45, 1.0, 1e-45, 0.5]))
            yield rows(
                f"tiny_weights_{divergence}",
                5,
                2,
                7,
                change=tiny,
                divergence=divergence,
                checks=(checks.tiny_weights,),
                backends=CPU,
                quick=True,
            )
        yield rows(
            f"order_{divergence}",
            60,
            7,
            11,
            given={"weighted": True, "dtype": torch.float64},
            divergence=divergence,
            checks=(checks.order_of_rows,),
            quick=True,
        )

    def thirds(x: Rows) -> Rows:
        return replace(x, rows=torch.randint(10, (12,)) * 3)

    yield rows(
        "rows_without_any", 12, 30, 6, change=thirds, checks=(checks.rows_without_any,), quick=True
    )


def not_finite() -> Iterator[Case]:
    for divergence, c, scale, dtype in itertools.product(
        DIVERGENCES, (1, 6, 40), (2.0, 60.0), (torch.float32, torch.float64)
    ):
        name = f"{divergence}_C{c}_{short(dtype)}"
        quick = c == 6 and dtype == torch.float32 and scale == 2.0
        quick = quick and (divergence == "jsd" or NATIVE)
        yield rows(
            f"finite_{name}_{scale:g}",
            20,
            5,
            c,
            given={"scale": scale, "dtype": dtype},
            divergence=divergence,
            checks=(checks.not_finite,),
            quick=quick,
        )
        if scale != 2.0:
            continue
        # every row of clean row 4 is dropped, and a third of the others
        base = make_rows(40, 9, c, dtype=dtype)
        dropped = (base.rows == 4) | (torch.arange(40) % 3 == 0)
        weight = torch.where(dropped, 0.0, 1.5).to(dtype)
        where = {"perturbed": dropped.nonzero().flatten().tolist(), "clean": [4]}
        check = partial(checks.anything_in, rows=where)
        yield rows(
            f"anything_{name}",
            40,
            9,
            c,
            given={"dtype": dtype},
            divergence=divergence,
            change=lambda x, weight=weight: replace(x, row_weight=weight),
            checks=(check,),
            quick=quick,
        )
    for row, count in itertools.product((-1, 4, 1 << 40), (5, 300)):

        def wrong(x: Rows, row=row) -> Rows:
            x.rows[2] = row
            return x

        match = rf"rows\[2\] is {row}, but clean has 4 rows"
        yield rows(
            f"wrong_row_{row}_R{count}",
            count,
            4,
            3,
            change=wrong,
            quick=True,
            checks=(partial(checks.nan_or_raises, match=match),),
        )


def behaviour() -> Iterator[Case]:
    """Small inputs of every divergence, through everything that does not depend on numbers."""
    for dtype, (divergence, c) in itertools.product(
        DTYPES, (("jsd", 9), ("mse", 40), ("binary_jsd", 16))
    ):
        given = {"weighted": True, "dtype": dtype}
        every = (bound, *checks.BEHAVIOUR)
        quick = c == 9 and (dtype == torch.float32 or (dtype == torch.bfloat16 and CPU))
        yield rows(
            f"behaviour_{divergence}_{short(dtype)}",
            20,
            7,
            c,
            given=given,
            divergence=divergence,
            checks=every,
            quick=quick,
        )
    for dtype in DTYPES:
        given = {"weighted": True, "dtype": dtype}
        yield rows(
            f"behaviour_R700_{short(dtype)}",
            700,
            90,
            101,
            given=given,
            backends=CPU,
            checks=(bound, *checks.BEHAVIOUR[:6]),
        )
    for weighted, divergence in itertools.product((False, True), DIVERGENCES):
        given = {"weighted": weighted, "dtype": torch.float64}
        yield rows(
            f"gradcheck{'_weighted' * weighted}_{divergence}",
            6,
            3,
            4,
            given=given,
            divergence=divergence,
            checks=(checks.gradcheck,),
            quick=True,
        )
    for divergence, c, dtype in itertools.product(DIVERGENCES, (1, 4, 9, 16, 31, 129), DTYPES):
        given = {"weighted": True, "dtype": dtype}
        yield rows(
            f"isa_{divergence}_C{c}_{short(dtype)}",
            30,
            7,
            c,
            given=given,
            divergence=divergence,
            backends=EVERYWHERE[3:],
            quick=c == 9,
        )
    for scale in (60.0, 1e4):
        yield rows(
            f"isa_logits_{scale:g}",
            30,
            7,
            20,
            given={"scale": scale},
            backends=EVERYWHERE[3:],
            quick=True,
        )


def emulated() -> Iterator[Case]:
    """Small twins of what takes the CUDA library's other paths on a GPU."""
    cuda = {"backends": ("cuda",), "here": ("cuda",)}
    for c, divergence in itertools.product(
        (1, 7, 29, 50, 101, 174, 250, 400, 600, 1025), DIVERGENCES
    ):
        yield rows(
            f"busy_C{c}_{divergence}",
            5,
            3,
            c,
            emulator={"MCR_EMULATED_BUSY": "1"},
            divergence=divergence,
            quick=c in (7, 174) and divergence == "jsd",
            **cuda,
        )

    def one_without(x: Rows) -> Rows:
        x.rows[x.rows == 1] = 2
        return x

    # teams of which several share a clean row's perturbed ones
    for c, divergence, dtype in itertools.product(
        (6, 20, 50, 101, 174, 250), DIVERGENCES, DTYPES[:3]
    ):
        given = {"weighted": True, "dtype": dtype, "seed": c}
        yield rows(
            f"parts_C{c}_{divergence}_{short(dtype)}",
            140,
            3,
            c,
            given=given,
            change=one_without,
            divergence=divergence,
            checks=(bound, checks.dirty_memory),
            quick=c == 50 and divergence == "jsd" and dtype == DTYPES[0],
            **cuda,
        )
        if dtype == DTYPES[0]:

            def first_half(x: Rows) -> Rows:
                return replace(x, row_weight=torch.arange(140).ge(70).to(torch.float32))

            check = partial(checks.anything_in, rows={"perturbed": list(range(70))})
            yield rows(
                f"parts_anything_C{c}_{divergence}",
                140,
                3,
                c,
                given={"seed": c},
                change=first_half,
                divergence=divergence,
                checks=(check,),
                **cuda,
            )
    yield rows("sums_in_two_stages", 34000, 33000, 1, divergence="mse", **cuda)
    for n in (0, 1, 2, 70, 300):
        yield rows(f"many_R{2 * n}", 2 * n, max(n, 1), 3, **cuda)


def fuzz(seed: int) -> Case:
    """Random rows, options and upstream gradient."""
    rng = random.Random(seed)
    shape = (
        rng.choice([1, 2, 7, 8, 9, 40]),
        rng.choice([1, 2, 5, 30]),
        rng.choice([1, 2, 3, 4, 8, 10, 16, 17, 33, 100]),
    )
    given = {
        "scale": rng.choice([0.01, 0.3, 1.0, 3.0, 30.0, 1000.0]),
        "weighted": rng.random() < 0.4,
        "dtype": rng.choice(DTYPES),
        "seed": seed,
    }
    factor, divergence = rng.choice([1.0, -0.3, 7.0]), rng.choice(DIVERGENCES)
    return rows(
        f"fuzz_{seed}",
        *shape,
        given=given,
        factor=factor,
        divergence=divergence,
        backends=CPU,
        quick=seed < 40,
    )


def cases() -> Iterator[Case]:
    for group in (shapes, dtypes, magnitudes, saturated, weights, not_finite, behaviour, emulated):
        yield from group()
    yield from map(fuzz, range(150))
