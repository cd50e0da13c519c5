"""Random problems for the CUDA library's launchers and kernels, against the float64 reference.

The constants from which on large problems take paths of their own are drawn too, so that small ones
take them all.
"""

import os
from collections.abc import Callable
from unittest import mock

import masks
import pytest
import torch
from contrastive import hold_to_bound, make_rows
from divergences import DIVERGENCES, Batch, Rows, check, logit_size, make_batch, paired_off, run
from divergences import make_rows as make_held_rows
from emulated import library
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import check_gradient, check_value

from mcr_fast.ops.nt_xent import nt_xent
from mcr_fast.ops.reconstruction_loss import reconstruction_loss
from mcr_fast.ops.sup_con import sup_con

pytestmark = pytest.mark.process("emulated")

LOSSES = {"nt_xent": nt_xent, "sup_con": sup_con}
DTYPES = st.sampled_from((torch.float32, torch.bfloat16, torch.float16))
UPSTREAM = st.sampled_from((1.0, -2.5))
SEEDS = st.integers(0, 2**16)
# by the teams of csrc: one step and several of each, whole and ragged
CLASSES = st.one_of(
    st.integers(1, 70), st.sampled_from((96, 101, 128, 174, 192, 193, 250, 400, 520, 700, 1025))
)
# few and many; `slow` ones begin with the quick
COUNTS = pytest.mark.parametrize("count", [12, pytest.param(400, marks=pytest.mark.slow)])


def hold(problems: st.SearchStrategy, test: Callable[..., None], count: int) -> None:
    """The same examples in every run; one problem is the test's arguments, `knobs` among them."""

    def with_knobs(problem: dict) -> None:
        rest = dict(problem)
        knobs = {f"MCR_EMULATED_{name}": str(v) for name, v in rest.pop("knobs").items()}
        with mock.patch.dict(os.environ, knobs):
            test(**rest)

    profile = settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    profile(given(problems)(with_knobs))()


def knobs(**values: tuple[int, ...]) -> st.SearchStrategy:
    """Any of the constants, each left alone or one of the values."""
    return st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in values.items()})


def only_self_pairs(x: Batch) -> bool:
    rows = torch.arange(x.contributions.shape[1])
    return x.order is None and x.donors is not None and bool((x.donors == rows).all())


def hold_pairs(x: Batch, upstream: float | None, options: dict) -> None:
    if only_self_pairs(x):
        # Nothing moves and the truth is 0: the bound on the bias has no scale there. What is left
        # is the rounding of a mass of 1, which is that of the logits, in second order.
        rounding = torch.finfo(torch.float32).eps * (1 + logit_size(x))
        bound = rounding**2 * 2 ** len(x.contributions)
        assert all((t.abs() <= bound).all() for t in run(x, **options))
        return
    if upstream is None:
        count = len(run(x, **options)[0])
        check(x, torch.linspace(-1, 2, count, dtype=torch.float64), **options)
    else:
        check(x, upstream, **options)


@st.composite
def pairs(draw) -> dict:
    modalities = draw(st.sampled_from((2, 2, 2, 3, 4, 8)))
    scheme = draw(st.sampled_from(("cyclic", "table", "exhaustive")))
    options = {
        "subsets": "single" if modalities == 8 else draw(st.sampled_from(("single", "all"))),
        "strategy": draw(st.sampled_from(("greedy", "independent", "collaborative"))),
        "clean_path": draw(st.sampled_from(("shared", "routed", "detached"))),
        "divergence": draw(st.sampled_from(("jsd", *DIVERGENCES))),
        "exclude": draw(st.sampled_from(("none", "self", "same_label"))),
    }
    classes = draw(CLASSES)
    rows = draw(st.integers(1, 9 if classes > 100 or modalities > 2 else 40))
    # squares of 1e4 have no float16 gradient
    scales = (0.01, 0.15, 1.5, 30.0, 1e4)[: 4 if options["divergence"] == "mse" else 5]
    x = make_batch(
        *(modalities, rows, classes, scheme),
        own=scheme != "exhaustive" and draw(st.booleans()),
        count=draw(st.sampled_from((1, 2, 5, 20))),
        scale=draw(st.sampled_from(scales)),
        bias=draw(st.booleans()),
        present=draw(st.booleans()),
        weighted=draw(st.booleans()),
        dtype=draw(DTYPES),
        seed=draw(SEEDS),
    )
    if rows > 1 and draw(st.booleans()):  # two rows that are alike in all but a rounding
        x.contributions[:, rows - 1] = x.contributions[:, 0] * (1 + 1e-4)
    taken = knobs(
        kLeastElements=(0, 0, 1 << 40),  # far pairs first, or never
        kBusyThreads=(1, 256, 2048),  # one to many parts
        kMaxPairBytes=(1, 1 << 14),  # chunks of one permutation, or of some
        kFarRun=(1, 3),
    )
    return {
        "x": x,
        "upstream": draw(st.sampled_from((1.0, -2.5, None))),
        "options": options,
        "knobs": draw(taken),
    }


@COUNTS
def test_pairs(count):
    hold(pairs(), hold_pairs, count)


@st.composite
def held_rows(draw) -> dict:
    divergence = draw(st.sampled_from(("jsd", *DIVERGENCES)))
    classes = draw(CLASSES)
    x = make_held_rows(
        *(draw(st.integers(0, 40 if classes > 100 else 200)), draw(st.integers(1, 6)), classes),
        scale=draw(st.sampled_from((0.01, 2.0, 300.0))),
        weighted=draw(st.booleans()),
        dtype=draw(DTYPES),
        seed=draw(SEEDS),
    )
    return {
        "x": x,
        "upstream": draw(UPSTREAM),
        "divergence": divergence,
        "knobs": draw(knobs(kBusyThreads=(1, 256, 2048))),
    }


@COUNTS
def test_rows(count):
    hold(held_rows(), check, count)


@st.composite
def masked(draw) -> dict:
    """Pairs, or rows, of logits with a mask in some classes of some rows, or apart by an offset."""
    divergence = draw(st.sampled_from(("jsd", "binary_jsd")))
    size, mask = masks.SIZE, draw(st.sampled_from(masks.MASKS))
    kind = draw(st.sampled_from(("pairs", "pairs", "rows", "offset")))
    if kind == "pairs":
        scheme, own = draw(st.sampled_from((("cyclic", False), ("table", False), ("table", True))))
        x = make_batch(2, 9, draw(st.sampled_from((5, 13, 51))), scheme, own=own, seed=5)
        x = masks.masked_batch(draw(st.sampled_from(masks.CARRIERS)), mask, x)
    elif kind == "rows":
        x = masks.masked_rows(draw(st.sampled_from(masks.ROW_SIDES)), mask, 5, torch.float32)
    else:
        side = draw(st.sampled_from(("both", "perturbed", "clean")))
        scale, divergence = draw(st.sampled_from((0.05, 1.0))), "jsd"
        x, size = masks.rows_apart(side, draw(st.sampled_from(masks.OFFSETS)), scale), 4 * scale
    return {
        "x": x,
        "size": size,
        "divergence": divergence,
        "knobs": draw(knobs(kLeastElements=(0,), kBusyThreads=(1, 256), kMaxPairBytes=(1,))),
    }


def hold_masked(x: Batch | Rows, size: float, divergence: str) -> None:
    def ours(x, upstream=1.0, **options):
        return run(x, "cpu", upstream, **options)

    masks.check(x, ours, size=size, divergence=divergence)


@COUNTS
def test_masked_logits(count):
    hold(masked(), hold_masked, count // 2)


@st.composite
def embeddings(draw) -> dict:
    shape = draw(st.integers(2, 200)), draw(st.integers(1, 70))
    classes, seed = draw(st.sampled_from((0, 1, 5, 30))), draw(SEEDS)
    x, labels, present = make_rows(*shape, classes, torch.float32, seed=seed)
    taken = knobs(
        kKeptBytes=(0, 0),  # similarities are made again
        kStripeBytes=(0, 1 << 15),
        kMinStripeRows=(32, 64),
        kPanelBytes=(0,),
        kMinPanelRows=(32, 64),
        kWarpRows=(0,),  # a row is a block's
        kRun=(32, 96),
    )
    return {
        "op": draw(st.sampled_from(tuple(LOSSES))),
        "x": (x * draw(st.sampled_from((1.0, 1e-3, 1e3)))).to(draw(DTYPES)),
        "labels": labels,
        "present": present if draw(st.booleans()) else None,
        "temperature": draw(st.sampled_from((2.0, 0.5, 0.07, 0.02, 0.01))),
        "upstream": draw(UPSTREAM),
        "knobs": draw(taken),
    }


def hold_contrastive(op, x, labels, present, temperature, upstream) -> None:
    def results(x: torch.Tensor, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.detach().requires_grad_()
        loss = LOSSES[op](x, labels, present, temperature=temperature, backend=backend)
        return loss.detach(), *torch.autograd.grad(loss * upstream, x)

    ours, plain = results(x, "cpu"), results(x, "reference")
    truth = results(x.double(), "reference")
    hold_to_bound(op, ours, truth, plain, x, temperature, upstream, (list(x.shape), x.dtype))


@COUNTS
def test_contrastive_losses(count):
    hold(embeddings(), hold_contrastive, count)


@pytest.mark.parametrize("op", LOSSES)
def test_copies_of_one_row(op):
    """Every similarity is its bound, and the gradient nothing but rounding."""
    x, labels, _ = make_rows(50, 9, 4)
    hold_contrastive(op, x[:1].repeat(50, 1), labels, None, 0.1, 1.0)


@st.composite
def latents(draw) -> dict:
    widths = draw(st.lists(st.integers(0, 80), min_size=1, max_size=9))
    if draw(st.booleans()):  # whole vectors
        widths = [8 * width for width in widths]
    rows, gap = draw(st.integers(0, 40)), draw(st.sampled_from((0, 0, 1, 8)))
    g = torch.Generator().manual_seed(draw(SEEDS))
    scale, first, second = draw(st.sampled_from((1e-3, 1.0, 1e2))), draw(DTYPES), draw(DTYPES)
    made = [scale * torch.randn(rows, d + gap, generator=g) for d in (*widths, sum(widths))]
    made = [t.to(second if t is made[-1] else first)[:, gap:] for t in made]
    return {
        "tensors": made,
        "upstream": draw(UPSTREAM),
        "knobs": draw(knobs(kMaxBlocks=(1, 3))),
    }


def hold_reconstruction(tensors: list[torch.Tensor], upstream: float) -> None:
    def results(tensors: list[torch.Tensor], backend: str) -> tuple[torch.Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        loss = reconstruction_loss(leaves[:-1], leaves[-1], backend=backend)
        return loss.detach(), *torch.autograd.grad(loss * upstream, leaves)

    ours, plain = results(tensors, "cpu"), results(tensors, "reference")
    truth = results([t.double() for t in tensors], "reference")
    case = [list(t.shape) for t in tensors]
    check_value("reconstruction_loss", ours[0], truth[0], plain[0], case=case)
    for gradients in zip(ours[1:], truth[1:], plain[1:], strict=True):
        check_gradient("reconstruction_loss", *gradients, case=case)


@COUNTS
def test_reconstruction(count):
    hold(latents(), hold_reconstruction, count)


@pytest.mark.slow
def test_long_rows_are_added_up_in_float64():
    """2^16 equal squares a thread: float32 alone would be off by thousands of roundings."""
    reconstruction = torch.full((1, 1 << 24), 1 / 3)
    loss = reconstruction_loss([torch.zeros(1, 1 << 24)], reconstruction, backend="cpu")
    torch.testing.assert_close(
        loss.double(), reconstruction[0, 0].double().square(), rtol=5e-7, atol=0
    )


@pytest.mark.parametrize("parts", [1, 1 << 16])
def test_rows_far_apart(parts, monkeypatch):
    """The clean row's normaliser leaves the range of float32: the rescaled path."""
    monkeypatch.setenv("MCR_EMULATED_kBusyThreads", str(parts))
    x = paired_off(make_batch(2, 6, 19, "table"), 1, 4)
    x.contributions[:, 1] += torch.linspace(-300, 300, 19)
    x.contributions[:, 4] -= torch.linspace(-300, 300, 19)
    for least in ("0", str(1 << 40)):
        monkeypatch.setenv("MCR_EMULATED_kLeastElements", least)
        check(x)


def own_donors(x: Batch) -> set[int]:
    x.donors[0, :2] = torch.arange(9)
    return set()


def two_alike(x: Batch) -> set[int]:
    x.contributions[:, 7] = x.contributions[:, 2]
    return {2, 7}


def some_dropped(x: Batch) -> set[int]:
    """All pairs near; the first two donors of the rows 1 to 4 dropped, and all of rows 3 and 6."""
    x.contributions *= 1e-3
    x.present = torch.ones(9, 2, dtype=torch.bool)
    x.present[[3, 6]] = False
    x.labels = torch.tensor([0, 1, 1, 1, 1, 1, 1, 2, 3])
    return {0, 1, 2, 4, 5, 7, 8}


@pytest.mark.parametrize(
    ("scheme", "change"),
    [
        *(("cyclic", lambda x: set()), ("exhaustive", lambda x: set()), ("table", own_donors)),
        *(("exhaustive", two_alike), ("exhaustive", some_dropped)),
    ],
)
def test_far_passes_leave_near_pairs_alone(scheme, change, monkeypatch):
    """The rows and donors of pairs that are left to the exact kernels are those that are near."""
    monkeypatch.setenv("MCR_EMULATED_kLeastElements", "0")
    x = make_batch(2, 9, 37, scheme, count=5, scale=2.0)
    near = change(x)
    exclude = "same_label" if change is some_dropped else "none"
    check(x, exclude=exclude)
    for marks in library.left():
        assert set(torch.nonzero(marks.view(2, 9))[:, 1].tolist()) == near
