"""reconstruction_loss: N rows, M latents of widths D_m."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from divergences import DTYPES

from suite import behaviour, checks
from suite.backends import Backend
from suite.cases import CAPABILITIES, CPU, KERNELS, Case, fitting, named
from suite.checks import bound
from suite.subjects import Reconstruction

FLOAT32, BFLOAT16, FLOAT16, FLOAT64 = DTYPES


def nowhere_else(subject: Reconstruction, on: Backend) -> None:
    """A number that is not finite costs two elements of the gradients: its own, and the other's."""
    for bad in (torch.nan, torch.inf):
        for y, (_, (which, at)) in subject.edges(bad):
            _, *grads = y.run(on.argument, y.upstream())
            assert not grads[which - 1][at].isfinite()
            lost = [int((~grad.isfinite()).sum()) for grad in grads]
            assert (sum(lost), max(lost), lost[-1]) == (2, 1, 1)


def case(
    what: str,
    rows: int,
    widths: tuple[int, ...],
    *,
    dtype: torch.dtype = FLOAT32,
    reconstruction: torch.dtype | None = None,  # that of the latents if None
    change: Callable[[Reconstruction], Reconstruction] = lambda x: x,
    **rest,  # of the case
) -> Case:
    """A case named by what it is made of."""

    def make() -> Reconstruction:
        g = torch.Generator().manual_seed(0)
        sizes = [*widths, sum(widths)]
        *latents, h = (torch.randn(rows, d, generator=g, dtype=FLOAT64) for d in sizes)
        made = [z.to(dtype) for z in latents], h.to(reconstruction or dtype)
        return change(Reconstruction(*made))

    wide = FLOAT64 if FLOAT64 in (dtype, reconstruction) else None
    rest["backends"] = fitting("reconstruction_loss", wide, rest.pop("backends", KERNELS))
    shape = {"N": rows, "widths": f"D{'_'.join(map(str, widths))}"}
    name = named(what=what, **shape, dtype=dtype, other=reconstruction)
    return Case("reconstruction_loss", name, make, work=rows * sum(widths), **rest)


# N, D_m: whole vectors, widths that fill none, one column, no column, several blocks of rows, more
# than one tile each way, more modalities than one launch takes
SHAPES = [
    *((8, (16, 16)), (7, (3, 17, 64)), (1, (1,)), (5, (0, 3)), (70, (37, 41)), (1000, (37, 53))),
    *((3, (20000, 1)), (3, (5000, 8)), (3000, (40, 9)), (3, (4, 8, 1, 16, 2, 3, 64, 5, 12))),
]


def mixed(x: Reconstruction) -> Reconstruction:
    """The widest decides the arithmetic; each gradient has its own input's dtype."""
    first, *others = x.latents
    return Reconstruction([first, *(z.float() for z in others)], x.reconstruction)


def shapes() -> Iterator[Case]:
    for shape, dtype in product(SHAPES, DTYPES):
        quick = shape[0] == 7 and dtype == FLOAT32
        yield case(
            "shape", *shape, dtype=dtype, quick=quick or CPU, thorough=shape[0] in (7, 8, 70)
        )
    for dtype in DTYPES[:3]:
        yield case("production", 2048, (512, 512), dtype=dtype, thorough=dtype == BFLOAT16)
    for dtype in DTYPES:
        rest = {"dtype": dtype, "backends": CAPABILITIES, "quick": True}
        yield case("isa", 7, (3, 17, 64), **rest)
        yield case("isa", 3, (5000, 8), **rest)  # many to a lane, the more the narrower vectors are
    for first, second in product(DTYPES, DTYPES):
        rest = {"dtype": first, "reconstruction": second}
        some = (bound, checks.dtypes_of_inputs)
        yield case("mixed", 9, (5, 4), change=mixed, checks=some, quick=CPU, **rest)
        fake = (behaviour.opcheck,)  # fake tensors know the dtypes too
        yield case("fake", 9, (5, 4), change=mixed, checks=fake, backends=CPU, **rest)
        for shape in ((1, (8,)), (7, (512, 16)), (30, (24, 104)), (5, (37, 3, 64))):
            yield case("two", *shape, backends=("triton",), **rest)


def columns(x: Reconstruction) -> Reconstruction:
    """All but the first column of the latents, and of a wider reconstruction the last ones."""
    wide = torch.cat([x.reconstruction, x.reconstruction], 1)
    return Reconstruction(
        [z[:, 1:] for z in x.latents], wide[:, -sum(z.shape[1] - 1 for z in x.latents) :]
    )


def others() -> Iterator[Case]:
    for dtype in (FLOAT32, FLOAT64):
        yield case("empty", 0, (3, 4), dtype=dtype, checks=(bound, checks.zero), quick=True)
    for widths, dtype in product(((9, 17), (16, 48)), DTYPES[:3]):
        yield case("columns", 6, widths, dtype=dtype, change=columns, quick=CPU)
    for shape in ((20, (7, 9)), (20, (8, 24)), (40, (5, 19))):
        everywhere = {"checks": (checks.not_finite, nowhere_else), "quick": shape[1][0] == 7 or CPU}
        yield case("bad", *shape, **everywhere)
    yield case("gradcheck", 4, (2, 3), dtype=FLOAT64, checks=(behaviour.gradcheck,), quick=True)
    everything = tuple(c for c in behaviour.BEHAVIOUR if c is not behaviour.compiled)
    everything = (bound, *everything, partial(behaviour.compiled, dynamic=True))
    for dtype in DTYPES:
        rest = {"dtype": dtype, "checks": everything, "quick": dtype == FLOAT32}
        yield case("behaviour", 9, (3, 4), thorough=dtype == FLOAT32, **rest)
    some = (behaviour.repeat, behaviour.dirty_memory)
    yield case("bits", 3000, (64, 65), checks=some, backends=CPU, quick=True)
    yield case("bits", 40, (19, 30), checks=some, quick=CPU)
    yield case("bits", 90, (37, 5), checks=some, quick=CPU)


def cases() -> Iterator[Case]:
    yield from shapes()
    yield from others()
