"""The cases of nt_xent and sup_con: L rows of width D, and what only these are put through."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from contrastive import make_rows
from divergences import DTYPES, assert_same_bits

from mcr_fast.ops._limits import Call
from mcr_fast.ops.registry import OPS
from suite import behaviour, checks
from suite.backends import Backend
from suite.cases import CAPABILITIES, CPU, KERNELS, NATIVE, Case, fitting, named
from suite.checks import bound
from suite.subjects import Embeddings, worth_nothing

FLOAT32, BFLOAT16, FLOAT16, FLOAT64 = DTYPES
TEMPERATURES = (0.5, 0.1, 0.03, 0.01)
FIRST = {"nt_xent": FLOAT32, "sup_con": BFLOAT16}  # with which the quick tier has most


def absent_rows(subject: Embeddings, on: Backend) -> None:
    """Absent rows are as though they were not there, whatever they hold."""
    x, labels, present = subject.tensors()
    upstream = subject.upstream()
    results = loss, grad = subject.run(on.argument, upstream)
    assert not grad[~present].any()
    alone = replace(subject, x=x[present], labels=labels[present], present=None)
    alone = alone.run(on.argument, upstream)
    if on.name == "cpu":
        assert_same_bits(alone, (loss, grad[present]))
    else:  # another order of sums
        torch.testing.assert_close(alone, (loss, grad[present]))
    for bad in (torch.nan, torch.inf):
        other = replace(subject, x=torch.where(present[:, None], x, bad))
        assert_same_bits(other.run(on.argument, upstream), results)
    for count in (0, 1):
        few = replace(subject, present=torch.arange(len(x), device=x.device) < count)
        assert worth_nothing(few, few.run(on.argument, upstream))


def any_order(subject: Embeddings, on: Backend) -> None:
    """The order of the rows does not matter, but for the order of sums."""
    x, labels = subject.tensors()
    order, upstream = torch.randperm(len(x)), subject.upstream()
    loss, grad = subject.run(on.argument, upstream)
    got = replace(subject, x=x[order], labels=labels[order]).run(on.argument, upstream)
    torch.testing.assert_close(got[0], loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(got[1], grad[order], rtol=1e-11, atol=1e-15)


def scale_free(subject: Embeddings, on: Backend, exponents: tuple[int, ...]) -> None:
    """Embeddings times a power of two: the same loss, and the gradient divided by it."""
    upstream = subject.upstream()
    loss, grad = subject.run(on.argument, upstream)
    for exponent in exponents:
        other = replace(subject, x=subject.x * 2.0**exponent).run(on.argument, upstream)
        if on.name == "triton":
            assert torch.equal(other[0], loss)
        torch.testing.assert_close(other[0], loss, rtol=1e-6, atol=0)
        # the dtype has no numbers between these
        kind = torch.finfo(grad.dtype)
        atol = max(kind.smallest_normal * kind.eps * 2.0**exponent, 1e-7)
        back = other[1].double() * 2.0**exponent
        torch.testing.assert_close(back, grad.double(), rtol=1e-7, atol=atol)


def near_truth(subject: Embeddings, on: Backend, atol: float) -> None:
    """Of rows around the least norm, whose gradients are of any size."""
    upstream = subject.upstream()
    truth, wanted = replace(subject, x=subject.x.double()).run("reference", upstream)
    loss, grad = subject.run(on.argument, upstream)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0)
    if subject.x.dtype == FLOAT32:
        if on.name != "triton":
            torch.testing.assert_close(grad.double(), wanted, rtol=1e-4, atol=atol)
        assert (grad - wanted).norm() <= 1e-5 * wanted.norm()
    elif subject.x.dtype == BFLOAT16:  # in float16 they are infinite
        assert (grad - wanted).norm() <= 2e-2 * wanted.norm()


def autocast(subject: Embeddings, on: Backend) -> None:
    """A forward in its region: nothing is rounded, in the backward neither."""
    expected = subject.run(on.argument, subject.upstream())
    again, leaves = checks.leaves_of(subject)
    with torch.autocast(on.device, torch.bfloat16):
        loss = again.call(on.argument)
    grads = torch.autograd.grad(loss, leaves, subject.upstream())
    assert_same_bits((loss.detach(), *grads), expected)


def keeps_digits(subject: Embeddings, on: Backend) -> None:
    """A tiny loss is log1p of a tiny ratio, not the difference of two logs."""
    upstream = subject.upstream()
    truth, wanted = replace(subject, x=subject.x.double()).run("reference", upstream)
    loss, grad = subject.run(on.argument, upstream)
    assert 0 < truth < 1e-6
    torch.testing.assert_close(loss.double(), truth, rtol=1e-4, atol=0)
    assert (grad - wanted).norm() <= 2e-2 * wanted.norm()


def promised(subject: Embeddings, on: Backend) -> None:
    """The accuracy that the project promises: 2e-6 of the loss, 1e-5 of the gradient."""
    upstream = subject.upstream()
    truth, wanted = replace(subject, x=subject.x.double()).run("reference", upstream)
    loss, grad = subject.run(on.argument, upstream)
    assert (loss - truth).abs() <= 2e-6 * truth
    assert (grad - wanted).norm() <= 1e-5 * wanted.norm()


def case(
    op: str,
    what: str | None,
    rows: int,
    width: int,
    classes: int,  # 0: every row its own
    *,
    masked: bool = False,
    dtype: torch.dtype = FLOAT32,
    temperature: float = 0.5,
    change: Callable[[Embeddings], Embeddings] = lambda x: x,
    precision: str = "highest",
    **rest,  # of the case
) -> Case:
    """A case named by what it is made of."""

    def make() -> Embeddings:
        x, labels, present = make_rows(rows, width, classes, dtype)
        made = Embeddings(op, x, labels, present if masked else None, temperature, precision)
        return change(made)

    backends = fitting(op, dtype, rest.pop("backends", KERNELS))
    takes = OPS[op].refusal("cuda", Call(rows, width)) is None  # CUDA C++: small batches
    rest["backends"] = tuple(name for name in backends if name != "cuda" or takes)
    shape = {"L": rows, "D": width, "classes": classes, "masked": masked}
    name = named(what=what, **shape, dtype=dtype, T=float(temperature))
    return Case(op, name, make, work=rows * rows, **rest)


# L, D, classes: several stripes of 256 rows, classes that span stripes, widths that fill no vector
SHAPES = [
    *((64, 64, 6), (65, 37, 6), (2, 3, 1), (40, 8, 1), (33, 1, 3), (70, 53, 7), (256, 16, 5)),
    *((300, 33, 9), (700, 64, 2), (530, 17, 300)),
]
# the same for the kernels of a GPU: aligned, ragged, one class, one column, several tiles
TILED = [
    *((64, 32, 6), (65, 37, 6), (2, 3, 1), (40, 8, 1), (33, 1, 3), (70, 53, 7), (88, 16, 40)),
    *((128, 64, 6), (130, 20, 60), (300, 53, 7), (700, 64, 2), (64, 32, 0)),
]


def shapes(op: str) -> Iterator[Case]:
    for shape, masked, dtype in product(SHAPES, (False, True), DTYPES):
        for t in TEMPERATURES if shape[0] < 300 else TEMPERATURES[::3]:
            quick = (t == 0.5 and not masked) or (t == 0.01 and masked)
            quick = quick and shape[0] in (33, 70, 300)
            rest = {"dtype": dtype, "temperature": t, "backends": CPU, "quick": quick}
            yield case(op, "shape", *shape, masked=masked, **rest)
    for shape, dtype, masked, t in product(TILED, DTYPES[:3], (False, True), (0.5, 0.01)):
        some = masked == (dtype == BFLOAT16) and t == (0.5 if dtype == FLOAT32 else 0.01)
        # and with a maximum for each row in float32; the rest for the emulator
        others = dtype == FLOAT32 and masked and t == 0.01 and shape[0] > 60
        if some or others or shape[0] < 150:
            rest = {"dtype": dtype, "temperature": t, "masked": masked, "interpreted": some}
            rest["backends"] = KERNELS[1:] if some or others else ("cuda",)
            rest["thorough"] = some and shape[0] in (128, 300)
            # on Triton (65, 37) counts as small and (70, 53) as large
            quick = some and shape[:2] == (65, 37) and (dtype == FIRST[op] or ("cuda",))
            quick = quick or (some and shape[:2] == (70, 53) and dtype == FIRST[op] and ("triton",))
            yield case(op, "tiled", *shape, quick=quick, **rest)
    for dtype, (masked, t) in product((FLOAT32, BFLOAT16), ((False, 0.5), (True, 0.02))):
        # bfloat16 products, and more than one tile in a stripe
        rest = {"dtype": dtype, "masked": masked, "temperature": t, "quick": masked and CPU}
        yield case(op, "many", 1500, 96, 11, thorough=not masked, **rest)
    for dtype, t in product((BFLOAT16, FLOAT16), (0.5, 0.03)):
        rest = {"dtype": dtype, "temperature": t, "backends": KERNELS[1:]}
        yield case(op, "wide", 1500, 512, 9, **rest)
    yield case(op, "production", 2048, 512, 101, checks=(promised,), here=CPU)
    for dtype in (FLOAT32, BFLOAT16):
        yield case(op, "production", 4096, 512, 174, dtype=dtype, backends=KERNELS[1:])


def large(op: str) -> Iterator[Case]:
    """More rows than the CPU keeps similarities of (64 MiB), or Triton has in one panel."""
    yield case(op, "kept", 6400, 8, 40, checks=(promised,), here=CPU)
    for dtype in DTYPES[:3]:
        rest = {"dtype": dtype, "masked": dtype == BFLOAT16, "thorough": dtype == FLOAT32}
        yield case(op, "panels", 6000, 64, 11, backends=("triton",), **rest)
    # products of float32 rows in tf32: held to what torch's own lose with that setting
    for what, shape in {"tf32": (1500, 96, 11), "panels_tf32": (6000, 64, 11)}.items():
        yield case(op, what, *shape, precision="high", backends=("triton",))


def off_alignment(x: Embeddings) -> Embeddings:
    """Contiguous rows that do not begin where several elements can be read at once."""
    moved = x.x.new_empty(x.x.numel() + 1)[1:].view_as(x.x)
    return replace(x, x=moved.copy_(x.x))


def small(op: str) -> Iterator[Case]:
    """Sizes around those of the tiles of the CUDA kernels for small batches, and their limits."""
    sizes = ((1, 3), (7, 1), (8, 4), (9, 127), (63, 128), (65, 129), (64, 132), (257, 260))
    for (rows, width), dtype, masked in product(sizes, DTYPES[:3], (False, True)):
        t = 0.5 if dtype == FLOAT32 else 0.02
        rest = {"dtype": dtype, "masked": masked, "temperature": t, "backends": ("cuda",)}
        rest["quick"] = masked and dtype == FIRST[op] and rows in (9, 65)
        yield case(op, "small", rows, width, 4, **rest)
    for dtype in DTYPES[:3]:
        rest = {"dtype": dtype, "backends": ("cuda",), "here": ("cuda",)}
        yield case(op, "most_rows", 1024, 12, 37, masked=True, thorough=True, **rest)
        yield case(op, "widest", 20, 4096, 4, **rest)
        yield case(op, "off_alignment", 33, 24, 4, change=off_alignment, **rest)
    yield case(op, "copies_wide", 50, 300, 4, change=copies, temperature=0.1, backends=("cuda",))


def nothing(op: str) -> Iterator[Case]:
    for rows in (0, 1):
        yield case(op, "few", rows, 5, 2, checks=(bound, checks.zero), quick=True)
    yield case(op, "no_columns", 6, 0, 2, quick=True)

    def without_pairs(x: Embeddings) -> Embeddings:
        x.x[7] = torch.nan  # without a pair it does not matter
        return x

    yield case(op, "no_pair", 40, 8, 0, checks=(checks.zero,), quick=True)
    yield case(op, "no_pair_nan", 40, 8, 0, checks=(checks.zero,), quick=True, change=without_pairs)
    for rows, where in ((90, NATIVE), *((rows, ("triton",)) for rows in (60, 21, 20))):
        rest = {"checks": (absent_rows,), "backends": where, "quick": rows in (90, 20)}
        yield case(op, "absent", rows, 12, 4, masked=True, **rest)
    yield case(op, "order", 120, 16, 6, dtype=FLOAT64, checks=(any_order,), quick=True)


def not_finite(op: str) -> Iterator[Case]:
    for rows, t in product((20, 21, 40, 600), (0.5, 0.01)):
        rest = {"checks": (checks.not_finite,), "temperature": t}
        rest |= {"backends": ("triton",)} if rows == 21 else {}
        first = t == 0.5 if op == "nt_xent" else t == 0.01
        rest["quick"] = CPU if rows == 600 else rows < 40 and (first or NATIVE)
        yield case(op, "bad", rows, 7, 3, **rest)


def zero_row(x: Embeddings) -> Embeddings:
    x.x[3] = 0  # F.normalize: 0, and no projection in its gradient
    return x


def copies(x: Embeddings) -> Embeddings:
    return replace(x, x=x.x[:1].repeat(len(x.x), 1))


def extremes(op: str) -> Iterator[Case]:
    # on Triton an odd number of rows and columns counts as large
    for rows, dtype in product((50, 30, 31), DTYPES[:3]):
        where = NATIVE if rows == 50 else ("triton",)
        shape, rest = (rows, 9, 4), {"dtype": dtype, "backends": where}
        rest["quick"] = dtype == FLOAT32 and NATIVE
        exponents = (8, -6) if dtype == FLOAT16 else (60, -30, 115)
        check = partial(scale_free, exponents=exponents)
        yield case(op, "scaled", *shape, checks=(check,), **rest)
        check = partial(near_truth, atol=1e-6)
        yield case(op, "zero_row", *shape, change=zero_row, checks=(check,), **rest)
        yield case(op, "copies", *shape, change=copies, temperature=0.1, **rest)
    check = partial(scale_free, exponents=(66, 115, -33))
    yield case(op, "squares", 50, 9, 4, checks=(check,), backends=("cpu", "reference"), quick=True)

    def tiny(x: Embeddings, size: float) -> Embeddings:
        return replace(x, x=x.x * size)

    for size, rows in product((2.0**-66, 1e-13), (50, 30, 31)):  # below 1e-12 a norm is clamped
        rest = {"change": partial(tiny, size=size), "checks": (partial(near_truth, atol=1e-3),)}
        rest["backends"] = (*NATIVE, "reference") if rows == 50 else ("triton",)
        yield case(op, f"tiny_{size:g}", rows, 9, 4, quick=(*NATIVE, "reference"), **rest)


def behaves(op: str) -> Iterator[Case]:
    """Small inputs through everything that does not depend on numbers, larger ones some of it."""
    everything = tuple(c for c in behaviour.BEHAVIOUR if c is not behaviour.compiled)
    everything = (bound, *everything, partial(behaviour.compiled, dynamic=True))
    for dtype, masked in product(DTYPES, (False, True)):
        rest = {"dtype": dtype, "masked": masked, "checks": everything}
        rest |= {"thorough": masked, "interpreted": masked and dtype != FLOAT16}
        quick = masked and dtype == FIRST[op]
        yield case(op, "behaviour", 40, 24, 5, quick=quick and NATIVE, **rest)
        if quick:
            rest |= {"backends": ("triton",)}
            yield case(op, "behaviour", 12, 4, 3, quick=True, **rest)
            yield case(op, "behaviour", 40, 23, 5, **rest)
    for dtype, rows, t in product((FLOAT32, BFLOAT16), (37, 65, 700), (0.5, 0.01)):
        some = (behaviour.repeat, behaviour.dirty_memory, behaviour.value_alone)
        rest = {"dtype": dtype, "temperature": t, "checks": some, "backends": CPU}
        yield case(op, "bits", rows, 40, 6, masked=True, quick=rows == 700, **rest)
    for dtype in DTYPES[:3]:  # the kernels for large temperatures, and those that keep a maximum
        rest = {"dtype": dtype, "temperature": 0.01, "masked": True}
        rest |= {
            "checks": (behaviour.repeat, behaviour.dirty_memory),
            "quick": dtype == BFLOAT16 and ("cuda",),
        }
        yield case(op, "bits", 50, 19, 6, **rest)
        yield case(op, "bits", 51, 19, 6, **rest | {"backends": ("triton",)})

    def columns(x: Embeddings) -> Embeddings:
        return replace(x, x=x.x[:, 3:])

    yield case(op, "columns", 60, 24, 5, masked=True, change=columns, quick=CPU)
    yield case(op, "autocast", 64, 32, 6, checks=(autocast,), backends=("reference",), quick=True)
    for t, masked in product((0.5, 0.02), (False, True)):
        rest = {"temperature": t, "masked": masked, "dtype": FLOAT64}
        yield case(op, "gradcheck", 9, 4, 3, checks=(behaviour.gradcheck,), quick=True, **rest)
    for shape, t, dtype in product(((65, 37, 6), (300, 33, 9)), (0.5, 0.01), DTYPES):
        rest = {"temperature": t, "masked": True, "dtype": dtype, "backends": CAPABILITIES}
        yield case(op, "isa", *shape, quick=shape[0] == 65, **rest)


def separated(x: Embeddings) -> Embeddings:
    """Classes far apart; the factor brings the gradient into float16's range."""
    labels = torch.arange(40) % 4
    near = F.one_hot(labels, 4).float() + 1e-3 * torch.randn(40, 4)
    return replace(x, x=near.to(x.x.dtype), labels=labels, factor=1e6)


def of_op(op: str) -> Iterator[Case]:
    """All that are alike for both ops."""
    for group in (shapes, nothing, not_finite, extremes, large, small, behaves):
        yield from group(op)
