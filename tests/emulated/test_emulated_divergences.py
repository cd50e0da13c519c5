"""permuted_divergence and row_divergence: launchers and kernels of the CUDA library."""

import functools
from dataclasses import replace

import pytest
import torch
from divergences import (
    DIVERGENCES,
    assert_same_bits,
    call,
    check,
    make_batch,
    make_rows,
    run,
    unequal,
    with_dirty_memory,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCHEMES = [
    ("table", False),
    ("table", True),
    ("cyclic", False),
    ("cyclic", True),
    ("exhaustive", False),
]
# of every team: lanes by the number of classes (csrc/cuda/teams.h)
CLASSES = (1, 7, 29, 50, 101, 174, 250, 400, 600, 1025)


@pytest.mark.parametrize(("scheme", "own"), SCHEMES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_donors(scheme, own, divergence):
    check(make_batch(2, 5, 6, scheme, own=own, count=3), divergence=divergence)
    x = make_batch(3, 5, 6, scheme, own=own, count=2, present=True, weighted=True)
    for exclude in ("none", "self", "same_label"):
        check(x, unequal(x), divergence=divergence, exclude=exclude, strategy="collaborative")


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("classes", CLASSES)
def test_every_team(divergence, classes, monkeypatch):
    monkeypatch.setenv("MCR_EMULATED_BUSY", "1")  # as though the rows filled a GPU
    for scheme in ("table", "cyclic"):
        x = make_batch(2, 3, classes, scheme, count=2)
        check(x, divergence=divergence)
        check(x, unequal(x), divergence=divergence)
    check(make_rows(5, 3, classes), -2.5, divergence=divergence)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("classes", [6, 29, 50, 101, 174])
def test_few_rows_share_their_pairs(divergence, classes):
    x = make_batch(2, 9, classes, "table", count=16, present=True)
    check(x, divergence=divergence)
    check(x, unequal(x), divergence=divergence, exclude="self")


@pytest.fixture(params=["near", "far", "busy"])
def far(request, monkeypatch):
    """Small problems too take the path for pairs that are far apart; busy: as large ones do."""
    if request.param != "near":
        monkeypatch.setenv("MCR_EMULATED_FAR", "1")
    if request.param == "busy":
        monkeypatch.setenv("MCR_EMULATED_BUSY", "1")
    return request.param


# of every team for far pairs: csrc/permuted_divergence/cuda/far.cu
@pytest.mark.parametrize("classes", [6, 20, 50, 101, 174, 250, 300, 500, 700, 1000])
@pytest.mark.parametrize("scheme", ["table", "cyclic", "exhaustive"])
def test_far_pairs(scheme, classes, far):
    for scale in (0.01, 1.5, 30.0):
        x = make_batch(2, 7, classes, scheme, count=5, scale=scale)
        check(x, case=far)
        x = make_batch(2, 7, classes, scheme, count=5, scale=scale, present=True, weighted=True)
        check(x, unequal(x), case=far, exclude="same_label", clean_path="routed")


@pytest.mark.parametrize("dtype", DTYPES)
def test_far_pairs_of_many_rows(dtype, far):
    for scheme in ("table", "cyclic"):
        check(make_batch(2, 90, 11, scheme, count=32, dtype=dtype), case=far)
        check(make_batch(2, 33, 40, scheme, count=20, dtype=dtype, scale=8), case=far)
        check(make_batch(2, 17, 174, scheme, count=16, dtype=dtype), case=far)


@pytest.mark.parametrize("classes", [6, 101, 500])
def test_rows_that_are_their_own_donors(classes, far):
    x = make_batch(2, 9, classes, "table", count=6, scale=2.0)
    x.donors[0, 0] = x.donors[0, 3] = torch.arange(9)
    check(x, case=far)
    x.contributions[:, 7] = x.contributions[:, 2]  # near each other, all others far
    check(x, unequal(x), case=far)
    x.contributions[0, 3, 5] = torch.nan
    x.donors[:] = torch.arange(9)
    value, grad, _ = run(x)
    assert value.isnan().all()
    assert grad[:, 3].isnan().any()
    assert grad[:, :3].abs().max() < 1e-12


def test_far_pairs_keep_bits_and_nan(far):
    x = make_batch(2, 12, 40, "table", count=9)
    expected = run(x)
    for dirty in with_dirty_memory(functools.partial(run, x)):
        assert_same_bits(dirty, expected, far)
    x.contributions[0, 3, 5] = torch.nan
    value, grad, _ = run(x)
    assert value.isnan().all()
    assert grad.isnan().any()


def test_large_problems_and_long_rows_take_the_far_path_by_themselves():
    check(make_batch(2, 64, 520, "cyclic", count=16))
    check(make_batch(2, 12, 390, "cyclic", count=9))


def test_more_classes_than_registers():
    check(make_batch(2, 2, 4100, "cyclic", count=1))
    check(make_rows(2, 2, 4100))


@pytest.mark.parametrize("strategy", ["greedy", "independent", "collaborative"])
@pytest.mark.parametrize("clean_path", ["shared", "routed", "detached"])
def test_routing(strategy, clean_path):
    for modalities in (2, 3):
        x = make_batch(modalities, 6, 11)
        for upstream in (1.0, unequal(x)):
            check(x, upstream, strategy=strategy, clean_path=clean_path)


@pytest.mark.parametrize(("scheme", "own"), SCHEMES)
def test_upstream_gradients_that_only_look_unequal(scheme, own, far):
    for present in (False, True):
        x = make_batch(3 if own else 2, 6, 11, scheme, own=own, count=3, present=present)
        count = len(unequal(x))
        expected = run(x, upstream=0.3)
        # what a second pull would leave is rounded elsewhere
        again = functools.partial(run, x, upstream=torch.full((count,), 0.3))
        for ours in (again(), *with_dirty_memory(again)):
            assert_same_bits(ours, expected, far)
        for reduce, factor in ((torch.mean, 1 / count), (lambda d: (-d).sum(), -1.0)):
            leaves = [t.detach().requires_grad_() for t in (x.contributions, x.bias)]
            value = call(replace(x, contributions=leaves[0], bias=leaves[1]))
            grads = torch.autograd.grad(reduce(value), leaves)
            assert_same_bits(grads, run(x, upstream=factor)[1:], far)
        check(x, unequal(x), case=far)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    for scheme in ("table", "cyclic", "exhaustive"):
        check(make_batch(2, 6, 9, scheme, dtype=dtype, weighted=True))
    check(make_rows(7, 4, 9, dtype=dtype, weighted=True))


@pytest.mark.parametrize("perturbed", DTYPES)
@pytest.mark.parametrize("clean", DTYPES)
def test_row_divergence_reads_every_dtype(perturbed, clean):
    for classes in (5, 37, 300, 1030, 4101)[: 5 if perturbed == clean else 2]:
        x = make_rows(9, 4, classes, weighted=True)
        x = replace(x, perturbed=x.perturbed.to(perturbed), clean=x.clean.to(clean))
        for divergence in DIVERGENCES[: None if classes < 50 else 1]:
            check(x, 0.7, divergence=divergence)
        # the numbers are those of float32 rows, not rounded on the way
        as_float = replace(x, perturbed=x.perturbed.float(), clean=x.clean.float())
        expected = [t.to(u.dtype) for t, u in zip(run(as_float), run(x), strict=True)]
        assert_same_bits(run(x), expected)


# the same, by teams of which several share a clean row's perturbed ones
@pytest.mark.parametrize("classes", [6, 20, 50, 101, 174, 250])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_members_of_a_row_in_parts(classes, divergence):
    for dtype in DTYPES:
        x = make_rows(140, 3, classes, weighted=True, dtype=dtype, seed=classes)
        x.rows[x.rows == 1] = 2  # one without any
        check(x, divergence=divergence)
        for dirty in with_dirty_memory(functools.partial(run, x, divergence=divergence)):
            assert_same_bits(dirty, run(x, divergence=divergence))
    x.perturbed[:70] = torch.nan  # dropped, whatever it holds
    x.row_weight[:70] = 0
    x.row_weight[70:] = 1
    value, grad, grad_clean = run(x, divergence=divergence)
    assert value.isfinite()
    assert not grad[:70].any()
    assert grad_clean.isfinite().all()


@pytest.mark.parametrize("rows", [0, 1, 2, 70, 300])
def test_rows(rows):
    for scheme in ("table", "exhaustive") if rows < 100 else ("table",):
        check(make_batch(2, rows, 3, scheme, count=2))
    check(make_rows(2 * rows, max(rows, 1), 3))


@pytest.mark.parametrize(("rows", "classes"), [(64, 3), (65, 40), (700, 9)])
def test_sums_of_the_bias(rows, classes):
    x = make_batch(2, rows, classes, "table", count=1)
    check(x, divergence="mse", strategy="collaborative")


def test_sums_in_two_stages():
    # csrc/cuda/sums.cu
    check(make_rows(34000, 33000, 1), divergence="mse")
    x = make_batch(2, 33000, 1, "cyclic", count=1, weighted=True)
    check(x, divergence="mse", strategy="collaborative")


@pytest.mark.parametrize("dtypes", [DTYPES[:2], DTYPES[1:], DTYPES[::2]])
def test_gradients_of_two_dtypes(dtypes):
    x = make_batch(2, 6, 9)
    leaves = [
        t.to(dtype).requires_grad_()
        for t, dtype in zip((x.contributions, x.bias), dtypes, strict=True)
    ]
    value = call(replace(x, contributions=leaves[0], bias=leaves[1]), strategy="collaborative")
    grads = torch.autograd.grad(value.sum(), leaves)
    assert [g.dtype for g in grads] == list(dtypes)
    rounded = replace(x, contributions=leaves[0].detach().float(), bias=leaves[1].detach().float())
    expected = run(rounded, strategy="collaborative")[1:]
    assert_same_bits(grads, [g.to(dtype) for g, dtype in zip(expected, dtypes, strict=True)])


def test_non_contiguous():
    x = make_batch(2, 6, 9)
    view = make_batch(2, 6, 9)
    view.contributions = torch.stack([x.contributions] * 2, -1)[..., 1]
    view.bias = torch.stack([x.bias] * 2, -1)[..., 0]
    assert_same_bits(run(view), run(x))


def test_reads_no_memory_it_did_not_write():
    for x in (make_batch(2, 6, 9), make_batch(3, 5, 40, "table", present=True, weighted=True)):
        expected = run(x)
        for dirty in with_dirty_memory(functools.partial(run, x)):
            assert_same_bits(dirty, expected)


def test_value_without_gradient():
    x = make_batch(2, 6, 9)
    expected = run(x)[0]
    with torch.no_grad():
        assert torch.equal(call(x), expected)
