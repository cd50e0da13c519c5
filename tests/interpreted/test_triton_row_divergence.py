"""row_divergence on Triton's interpreter against the reference in float64."""

import functools
import math
from dataclasses import replace

import divergences
import pytest
import torch
from divergences import DIVERGENCES, Rows, assert_same_bits, call, make_rows, with_dirty_memory
from tolerances import TABLE, eps

pytestmark = pytest.mark.process("interpreted")

check = functools.partial(divergences.check, backend="triton")
run = functools.partial(divergences.run, backend="triton")

# R, N, C: aligned, ragged, one, several rows to a clean row, more than one tile, every width
SHAPES = [
    (16, 8, 8),
    (7, 3, 7),
    (1, 1, 1),
    (9, 4, 1),
    (70, 40, 5),
    (20, 2, 31),
    (5, 3, 101),
    (3, 2, 174),
    (3, 1, 513),
    (2, 2, 1025),
    (3, 2, 2049),
]


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, divergence):
    check(make_rows(*shape, weighted=shape[0] > 8), -2.5, divergence=divergence)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes(dtype, monkeypatch):
    if dtype == torch.bfloat16:
        # the interpreter cuts bfloat16 off where a GPU rounds it
        monkeypatch.setitem(TABLE, "row_divergence", replace(TABLE["row_divergence"], stored=1))
    for divergence in DIVERGENCES:
        check(make_rows(12, 5, 9, weighted=True, dtype=dtype), divergence=divergence)
    x = make_rows(12, 5, 9)
    mixed = replace(x, perturbed=x.perturbed.to(dtype))
    assert [t.dtype for t in run(mixed)] == [torch.float32, dtype, torch.float32]


@pytest.mark.parametrize("shape", [(0, 4, 5), (0, 0, 5)])
def test_no_rows(shape):
    value, *grads = run(make_rows(*shape))
    assert value == 0
    assert [list(g.shape) for g in grads] == [[0, 5], list(shape[1:])]
    assert not any(g.any() for g in grads)


def test_weights_that_sum_to_zero():
    x = make_rows(9, 4, 6)
    x.row_weight = torch.zeros(9)
    for result in run(x):
        assert not result.any()


def test_clean_rows_without_a_row_have_no_gradient():
    x = make_rows(12, 30, 6)
    x.rows = torch.randint(10, (12,)) * 3
    _, _, grad = run(x)
    without = torch.tensor([i for i in range(30) if i not in x.rows.tolist()])
    assert not grad[without].any()
    assert grad[x.rows].any(1).all()


def test_rows_out_of_range_give_nan():
    x = make_rows(5, 3, 4)
    for bad in (-1, 3, 2**40):
        rows = x.rows.clone()
        rows[2] = bad
        value, grad, _ = run(replace(x, rows=rows))
        assert value.isnan()
        assert grad[2].isnan().all()
        assert call(replace(x, rows=rows), "triton").isnan()


def test_non_contiguous():
    x = make_rows(20, 6, 9, weighted=True)
    expected = run(x)
    assert_same_bits(run(x.map(lambda t: torch.stack([t, t], -1)[..., 1])), expected)
    assert_same_bits(run(x.map(lambda t: t.mT.contiguous().mT if t.ndim > 1 else t)), expected)


@pytest.mark.parametrize("scale", [8.0, 60.0, 1e4])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_far_logits(scale, divergence):
    for num_classes in (1, 5, 66):
        check(make_rows(8, 3, num_classes, scale=scale), divergence=divergence)


@pytest.mark.parametrize("size", [80.0, 1e4])
def test_one_class_has_it_all(size):
    clean = size * torch.eye(12)
    for shift, expected in ((0, 0.0), (1, math.log(2))):
        value, *grads = run(Rows(clean.roll(shift, 0), clean, torch.arange(12)))
        assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-30)
        assert all(g.isfinite().all() for g in grads)


def test_equal_rows_differ_by_nothing():
    for divergence in DIVERGENCES:
        x = make_rows(12, 5, 7)
        x.perturbed = x.clean[x.rows]
        value, *grads = run(x, divergence=divergence)
        assert value < 1e-14
        assert max(float(g.abs().max()) for g in grads) < 1e-8


@pytest.mark.parametrize("delta", [1e-2, 1e-4])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_nearby_rows_keep_their_digits(delta, divergence):
    for num_classes in (5, 33):
        x = make_rows(20, 6, num_classes, scale=1.0)
        x.perturbed = x.clean[x.rows] + delta * x.perturbed
        ours = run(x, divergence=divergence)
        truth = divergences.run(x.to(torch.float64), "reference", divergence=divergence)
        for a, b, k in zip(ours, truth, (2, 8, 8), strict=True):
            error, allowed = (a - b).norm() / b.norm(), k * eps(torch.float32) / delta
            assert error <= allowed, f"{num_classes} classes: {error} > {allowed}"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_not_finite_in_nan_out(bad, divergence):
    for which in ("perturbed", "clean"):
        x = make_rows(10, 4, 6)
        r = 8 if which == "perturbed" else int(x.rows[8])
        getattr(x, which)[r, 3] = bad
        value, grad, grad_clean = run(x, divergence=divergence)
        assert value.isnan(), f"{bad} in {which}: {value}"
        assert call(x, "triton", divergence=divergence).isnan()
        assert grad[8].isnan().any()
        assert grad_clean[x.rows[8]].isnan().any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_dropped_rows_may_hold_anything(bad, divergence):
    x = make_rows(20, 9, 6)
    dropped = (x.rows == 4) | (torch.arange(20) % 3 == 0)
    x.row_weight = torch.where(dropped, 0.0, 1.5)
    expected = run(x, divergence=divergence)
    x.perturbed[dropped], x.clean[4] = bad, bad  # every row of clean row 4 is dropped
    ours = run(x, divergence=divergence)
    for got, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)
    assert not ours[1][dropped].any()
    assert not ours[2][4].any()


def test_same_bits_every_run_whatever_memory_holds():
    x = make_rows(30, 7, 9, weighted=True)
    expected = run(x)
    for dirty in with_dirty_memory(lambda: run(x)):
        assert_same_bits(dirty, expected)


def test_value_without_gradient():
    for divergence in DIVERGENCES:
        x = make_rows(20, 6, 9, weighted=True)
        value = call(x, "triton", divergence=divergence)
        torch.testing.assert_close(value, run(x, divergence=divergence)[0], rtol=1e-5, atol=0)


def test_double_backward_raises():
    x = make_rows(6, 3, 4)
    x.perturbed.requires_grad_()
    value = call(x, "triton")
    (grad,) = torch.autograd.grad(value, x.perturbed, create_graph=True)
    with pytest.raises(RuntimeError, match="row_divergence cannot be differentiated twice"):
        (value + grad.square().sum()).backward()
