"""The row algorithms of the CUDA kernels against the reference, on simulated teams of lanes.

What runs on the GPU alone is not covered: the special-function unit's exponential, the shuffles.
"""

import itertools
import shutil

import masks
import pytest
import simulated
import torch
from divergences import (
    Batch,
    assert_same_bits,
    check,
    logit_size,
    make_batch,
    make_rows,
    paired_off,
    unequal,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcr_fast._names import DIVERGENCES, OF_LOGITS

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="module")
def _compiled():
    simulated.module()


def only_self_pairs(x: Batch) -> bool:
    rows = torch.arange(x.contributions.shape[1])
    return x.order is None and x.donors is not None and bool((x.donors == rows).all())


def check_lanes(
    x: Batch, lanes: int, chunk=None, spare_steps=0, parts=1, upstream=1.0, far=False, **options
) -> None:
    how = {"lanes": lanes, "chunk": chunk, "spare_steps": spare_steps, "parts": parts, "far": far}
    value, *grads = simulated.permuted_divergence(x, **how, **options)
    if isinstance(upstream, torch.Tensor):
        _, *grads = simulated.permuted_divergence(x, upstream, **how, **options)
    given = [g for g in grads if g is not None]
    if only_self_pairs(x):
        # Nothing moves and the truth is 0: the bound on the bias has no scale there, and the CPU's
        # kernels leave it too. What is left is the rounding of a mass of 1, which is that of the
        # logits, in second order.
        rounding = torch.finfo(torch.float32).eps * (1 + logit_size(x))
        bound = rounding**2 * 2 ** len(x.contributions)
        assert all((t.abs() <= bound).all() for t in (value, *given))
        return
    check(x, upstream, case=how, ours=(value, *given), **options)


@pytest.mark.parametrize("lanes", simulated.LANES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("scheme", ["cyclic", "table", "exhaustive"])
def test_every_scheme(lanes, divergence, scheme):
    for modalities, own in ((2, False), (3, False), (3, True)):
        x = make_batch(modalities, 6, 37, scheme, own=own and scheme != "exhaustive")
        for upstream in (1.0, unequal(x)):
            check_lanes(x, lanes, chunk=2, upstream=upstream, divergence=divergence)


@st.composite
def problems(draw):
    """A batch, how it is run, and the op's options."""
    far = draw(st.booleans())
    modalities = 2 if far else draw(st.sampled_from([2, 2, 3, 4, 8]))
    rows = draw(st.integers(1, 9))
    scheme = draw(st.sampled_from(["cyclic", "table", "exhaustive"]))
    exclude = draw(st.sampled_from(["none", "self", "same_label"]))
    x = make_batch(
        modalities,
        rows,
        draw(st.integers(1, 70)),
        scheme,
        own=not far and scheme != "exhaustive" and draw(st.booleans()),
        count=draw(st.integers(1, 5)),
        scale=draw(st.sampled_from([0.01, 0.15, 1.5, 30.0, 1e4])),
        bias=draw(st.booleans()),
        present=draw(st.booleans()),
        weighted=draw(st.booleans()),
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 2**16)),
    )
    how = {
        "lanes": draw(st.sampled_from(simulated.LANES)),
        "chunk": draw(st.sampled_from([None, 1, 3])),
        "spare_steps": draw(st.integers(0, 2)),
        "parts": draw(st.sampled_from([1, 2, 4])),
        "far": far,
    }
    options = {
        "subsets": "single" if modalities == 8 else draw(st.sampled_from(["single", "all"])),
        "strategy": draw(st.sampled_from(["greedy", "independent", "collaborative"])),
        "clean_path": draw(st.sampled_from(["shared", "routed", "detached"])),
        "divergence": "jsd" if far else draw(st.sampled_from(("jsd", *DIVERGENCES))),
        "exclude": exclude,
    }
    if options["divergence"] not in OF_LOGITS and not x.contributions.abs().max() < 1e3:
        options["divergence"] = "jsd"  # squares of 1e4 have no float16 gradient
    return x, how, options


@settings(
    max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(problems())
def test_fuzz(problem):
    x, how, options = problem
    check_lanes(x, **how, **options)


@pytest.mark.parametrize("lanes", simulated.LANES)
def test_rows_far_apart(lanes):
    # the clean row's normaliser leaves the range of float32: the rescaled path
    x = paired_off(make_batch(2, 6, 19, "table"), 1, 4)
    x.contributions[:, 1] += torch.linspace(-300, 300, 19)
    x.contributions[:, 4] -= torch.linspace(-300, 300, 19)
    check_lanes(x, lanes)
    check_lanes(x, lanes, far=True)


@pytest.mark.parametrize("lanes", simulated.LANES)
@pytest.mark.parametrize("scheme", ["cyclic", "table", "exhaustive"])
def test_far_passes(lanes, scheme):
    x = make_batch(2, 6, 37, scheme)
    for strategy in ("greedy", "independent", "collaborative"):
        for clean_path in ("shared", "routed", "detached"):
            options = {"strategy": strategy, "clean_path": clean_path}
            check_lanes(x, lanes, chunk=3, spare_steps=1, far=True, **options)
    check_lanes(x, lanes, upstream=unequal(x), far=True)
    alone, *_ = simulated.permuted_divergence(x, lanes=lanes, far=True, want_grad=False)
    assert torch.equal(alone, simulated.permuted_divergence(x, lanes=lanes, far=True)[0])


def left_of(x: Batch, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and donors [S, N] of pairs that the far passes left; the results are checked."""
    left = torch.zeros(2, 2, x.contributions.shape[1], dtype=torch.int32)
    ours = simulated.permuted_divergence(x, lanes=8, far=True, left=left, **options)
    check(x, ours=ours, **options)
    return left[0], left[1]


@pytest.mark.parametrize("scheme", ["cyclic", "exhaustive"])
def test_far_passes_leave_no_pair_that_is_far(scheme):
    for marks in left_of(make_batch(2, 9, 37, scheme, scale=2.0)):
        assert not marks.any()


def test_far_passes_take_rows_that_are_their_own_donors():
    x = make_batch(2, 9, 37, "table", count=5, scale=2.0)
    x.donors[0, :2] = torch.arange(9)
    rows, donors = left_of(x)
    assert not rows.any()
    assert not donors.any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_bad_rows_that_are_their_own_donors_come_out_as_nan(bad):
    x = make_batch(2, 6, 19, "table", count=2, scale=2.0)
    x.donors[:] = torch.arange(6)
    for tensor in (x.contributions[0, 2], x.contributions[1, 4], x.bias):
        tensor[7] = bad
        value, grad, _ = simulated.permuted_divergence(x, lanes=8, far=True)
        assert value.isnan().all()
        assert grad[:, 2].isnan().any()


def test_only_near_pairs_are_left():
    x = make_batch(2, 9, 37, "exhaustive", scale=2.0)
    x.contributions[:, 7] = x.contributions[:, 2]
    for marks in left_of(x):
        assert marks.nonzero()[:, 1].tolist() == [2, 7, 2, 7]


def test_dropped_pairs_are_not_left():
    # the first two donors of the rows 1 to 4 are dropped, and all of rows 3 and 6
    x = make_batch(2, 9, 37, "exhaustive", present=True)
    x.present[:] = True
    x.present[[3, 6]] = False
    x.labels = torch.tensor([0, 1, 1, 1, 1, 1, 1, 2, 3])
    x.contributions *= 2.0
    rows, donors = left_of(x, exclude="same_label")
    assert not rows.any()
    assert not donors.any()
    x.contributions *= 1e-3
    for marks in left_of(x, exclude="same_label"):
        assert marks.tolist() == [[1, 1, 1, 0, 1, 1, 0, 1, 1]] * 2


@pytest.mark.parametrize("scale", [0.01, 0.1, 0.15, 0.2])
def test_some_pairs_far_and_some_near(scale):
    # rows 1 and 4 are alike in all but a rounding: near each other whatever the others are
    x = make_batch(2, 9, 37, "exhaustive", scale=scale)
    check_lanes(x, 8, far=True)
    x.contributions[:, 4] = x.contributions[:, 1] * (1 + 1e-4)
    check_lanes(x, 8, far=True)


def test_long_runs_of_far_pairs():
    # more pairs than one run adds up; the last run is a short one
    x = make_batch(2, 150, 11, "exhaustive")
    check_lanes(x, 8, far=True, clean_path="routed", strategy="independent")


def test_rows_that_are_their_own_donors():
    # own donors: the members' contributions must cancel to the last bit
    for classes in (1, 44):
        x = make_batch(3, 1, classes, "table", own=True, count=1, scale=30.0)
        check_lanes(x, 4)


def test_saturated_sigmoid():
    # 1 - sigmoid(w) must not come from a subtraction
    x = make_batch(2, 7, 1, "cyclic", count=1, scale=30.0, bias=False, seed=1)
    check_lanes(x, 4, divergence="binary_jsd", exclude="same_label", subsets="single")


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_numbers_come_out_as_nan(divergence, bad):
    x = make_batch(2, 5, 9, "cyclic")
    x.contributions[1, 3, 2] = bad
    for far in (False, True)[: 1 + (divergence == "jsd")]:
        value, grad, _ = simulated.permuted_divergence(x, lanes=4, divergence=divergence, far=far)
        assert value.isnan().all()
        assert grad[:, 3].isnan().any()


@pytest.mark.parametrize("far", [False, True])
def test_dropped_rows_add_nothing_whatever_they_hold(far):
    x = make_batch(2, 6, 9, "cyclic", present=True)
    x.present[:] = True
    x.present[2] = False
    x.contributions[:, 2] = torch.nan
    value, grad, _ = simulated.permuted_divergence(x, lanes=8, far=far)
    assert value.isfinite().all()
    assert grad.isfinite().all()
    assert (grad[:, 2] == 0).all()


def test_value_without_gradient_and_again():
    x = make_batch(3, 7, 21, "table", own=True)
    first = simulated.permuted_divergence(x, lanes=8)
    assert_same_bits(simulated.permuted_divergence(x, lanes=8), first)
    alone, *_ = simulated.permuted_divergence(x, lanes=8, want_grad=False)
    assert torch.equal(alone, first[0])


@settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    st.integers(0, 12),
    st.integers(1, 5),
    st.integers(1, 70),
    st.sampled_from([0.01, 2.0, 300.0]),
    st.booleans(),
    st.sampled_from(DTYPES),
    st.integers(0, 2**16),
    st.sampled_from(simulated.LANES),
    st.integers(0, 2),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(("jsd", *DIVERGENCES)),
)
def test_fuzz_row_divergence(
    perturbed, clean, classes, scale, weighted, dtype, seed, lanes, spare_steps, parts, divergence
):
    x = make_rows(perturbed, clean, classes, scale=scale, weighted=weighted, dtype=dtype, seed=seed)
    how = {"lanes": lanes, "spare_steps": spare_steps, "parts": parts}
    ours = simulated.row_divergence(x, **how, divergence=divergence)
    check(x, case=how, ours=ours, divergence=divergence)


def team_of(lanes: int, far: bool = False, parts: int = 1):
    """The simulated team's results as `run` returns them."""

    def ours(x, upstream=1.0, **options):
        if isinstance(x, Batch):
            how = {"lanes": lanes, "far": far, "parts": parts}
            value = simulated.permuted_divergence(x, **how, **options)[0]  # else it is scaled too
            _, *grads = simulated.permuted_divergence(x, upstream, **how, **options)
            return value, *(g for g in grads if g is not None)
        value, *grads = simulated.row_divergence(x, lanes=lanes, parts=parts, **options)
        return value, *(g * upstream for g in grads)

    return ours


@pytest.mark.parametrize("divergence", OF_LOGITS)
@pytest.mark.parametrize("side", masks.ROW_SIDES)
def test_masked_rows(side, divergence):
    for mask, parts in itertools.product(masks.MASKS, (1, 2)):
        x = masks.masked_rows(side, mask, 5, torch.float32)
        masks.check(x, team_of(4, parts=parts), divergence=divergence)


@pytest.mark.parametrize("divergence", OF_LOGITS)
@pytest.mark.parametrize("carrier", masks.CARRIERS)
def test_masked_contributions(carrier, divergence):
    for mask, scheme in itertools.product(masks.MASKS, ("cyclic", "table")):
        x = masks.masked_batch(carrier, mask, make_batch(2, 9, 13, scheme, seed=5))
        masks.check(x, team_of(8), divergence=divergence)
        if divergence == "jsd":
            masks.check(x, team_of(8, far=True))
    x = masks.masked_batch(carrier, -1e9, make_batch(3, 7, 5, "table", own=True, seed=6))
    masks.check(x, team_of(4), unequal(x), divergence=divergence, clean_path="routed")


@pytest.mark.parametrize("side", ["both", "perturbed", "clean"])
def test_rows_with_a_common_offset(side):
    for offset, scale in itertools.product(masks.OFFSETS, (0.05, 1.0)):
        masks.check(masks.rows_apart(side, offset, scale), team_of(4), size=4 * scale)
