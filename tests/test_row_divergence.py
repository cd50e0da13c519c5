"""row_divergence: the compiled kernels against the reference in float64."""

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
from contrastive import capabilities, needs_library
from divergences import (
    DIVERGENCES,
    DTYPES,
    DivergenceTests,
    Rows,
    assert_same_bits,
    call,
    check,
    make_rows,
    on_capability,
    run,
    with_dirty_memory,
)
from oracle import divergence_of
from tolerances import eps

pytestmark = needs_library

# R, N, C: aligned, ragged, one, several rows to a clean row, more than one tile, prime
SHAPES = [
    (16, 8, 16),
    (7, 3, 7),
    (1, 1, 1),
    (9, 4, 1),
    (5, 1, 2),
    (3, 9, 33),
    (100, 2, 31),
    (40, 40, 101),
    (6, 2, 513),
    (2, 1, 4100),
    (21, 8, 64),
    (21, 8, 65),
]


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("weighted", [False, True])
def test_reference_is_the_definition(divergence, weighted):
    x = make_rows(9, 4, 5, weighted=weighted, dtype=torch.float64)
    weights = x.row_weight.tolist() if weighted else [1.0] * 9
    terms = [
        weight * divergence_of(x.clean[i], w, divergence).item()
        for weight, i, w in zip(weights, x.rows, x.perturbed, strict=True)
    ]
    value, *_ = run(x, "reference", divergence=divergence)
    assert value.item() == pytest.approx(math.fsum(terms) / math.fsum(weights), rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, divergence, weighted):
    for dtype in DTYPES:
        x = make_rows(*shape, weighted=weighted, dtype=dtype)
        for upstream in (1.0, -2.5):
            check(x, upstream, divergence=divergence)


def test_production_size():
    for dtype in (torch.float32, torch.bfloat16):
        check(make_rows(256 * 32, 256, 101, dtype=dtype))


def test_dtypes_of_both_rows():
    """The wider of the two decides the arithmetic; each gradient has its own input's dtype."""
    for first, second in itertools.product(DTYPES, repeat=2):
        x = make_rows(12, 5, 9)
        x = replace(x, perturbed=x.perturbed.to(first), clean=x.clean.to(second))
        value, *grads = run(x)
        assert value.dtype == (torch.float64 if torch.float64 in (first, second) else torch.float32)
        assert [g.dtype for g in grads] == [first, second]
        torch.testing.assert_close(value, run(x, "reference")[0])


@pytest.mark.parametrize("capability", capabilities())
def test_on_every_instruction_set(capability):
    with on_capability(capability):
        for divergence, num_classes in itertools.product(DIVERGENCES, (1, 4, 9, 16, 31, 129)):
            for dtype in DTYPES:
                check(
                    make_rows(30, 7, num_classes, weighted=True, dtype=dtype), divergence=divergence
                )
        for scale in (60.0, 1e4):
            check(make_rows(30, 7, 20, scale=scale))


@pytest.mark.parametrize("shape", [(0, 4, 5), (0, 0, 5)])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_no_rows(shape, divergence):
    for dtype in (torch.float32, torch.float64):
        value, *grads = run(make_rows(*shape, dtype=dtype), divergence=divergence)
        assert value.dtype == dtype
        assert value == 0
        assert [list(g.shape) for g in grads] == [[0, 5], list(shape[1:])]
        assert not any(g.any() for g in grads)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_weights_that_sum_to_zero(divergence):
    x = make_rows(9, 4, 6)
    x.row_weight = torch.zeros(9)
    value, *grads = run(x, divergence=divergence)
    assert value == 0
    assert not any(g.any() for g in grads)


def test_clean_rows_without_a_row_have_no_gradient():
    x = make_rows(12, 30, 6)
    x.rows = torch.randint(10, (12,)) * 3
    _, _, grad = run(x)
    without = torch.tensor([i for i in range(30) if i not in x.rows.tolist()])
    assert not grad[without].any()
    assert grad[x.rows].any(1).all()


def test_weights_too_small_for_a_product():
    """A weight that underflows drops its row: gradient 0, and not what the memory held."""
    for divergence in ("mse", "binary_jsd"):
        x = make_rows(5, 2, 7)
        x.row_weight = torch.tensor([1.0, 1e-45, 1.0, 1e-45, 0.5])
        for _, grad, _ in with_dirty_memory(lambda x=x, d=divergence: run(x, divergence=d)):
            assert grad[[1, 3]].abs().max() < 1e-44
            assert grad[[0, 2, 4]].any(1).all()


def test_rows_out_of_range():
    x = make_rows(5, 3, 4)
    for bad in (-1, 3, 2**40):
        rows = x.rows.clone()
        rows[2] = bad
        with pytest.raises(RuntimeError, match=rf"rows\[2\] is {bad}, but clean has 3 rows"):
            call(replace(x, rows=rows))


def test_non_contiguous():
    x = make_rows(20, 6, 9, weighted=True)
    expected = run(x)
    assert_same_bits(run(x.map(lambda t: torch.stack([t, t], -1)[..., 1])), expected)
    assert_same_bits(run(x.map(lambda t: t.mT.contiguous().mT if t.ndim > 1 else t)), expected)


def test_order_of_rows_does_not_matter():
    x = make_rows(60, 7, 11, weighted=True, dtype=torch.float64)
    order = torch.randperm(60)
    shuffled = Rows(x.perturbed[order], x.clean, x.rows[order], x.row_weight[order])
    for divergence in DIVERGENCES:
        value, grad, grad_clean = run(x, divergence=divergence)
        got = run(shuffled, divergence=divergence)
        for ours, wanted in zip(got, (value, grad[order], grad_clean), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("scale", [8.0, 60.0, 300.0, 1e4])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_far_logits(scale, divergence):
    for num_classes, dtype in itertools.product((1, 2, 5, 66), DTYPES):
        check(make_rows(30, 7, num_classes, scale=scale, dtype=dtype), divergence=divergence)


@pytest.mark.parametrize("size", [80.0, 1e4])
def test_one_class_has_it_all(size):
    """Rows of different class have nothing in common: ln 2; of the same: 0."""
    clean = size * torch.eye(12)
    for shift, expected in ((0, 0.0), (1, math.log(2))):
        value, *grads = run(Rows(clean.roll(shift, 0), clean, torch.arange(12)))
        assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-30)
        assert all(g.isfinite().all() for g in grads)


def test_underflow_on_both_sides_is_zero():
    clean = -1e4 - 100 * torch.rand(8, 21)
    clean[:, 3] = 0
    perturbed = clean - 50
    value, *grads = run(Rows(perturbed + 1, clean, torch.arange(8)))
    assert value < 1e-12
    perturbed[:, 3] = 0
    value, *grads = run(Rows(perturbed, clean, torch.arange(8)))
    assert value == 0
    assert not any(g.any() for g in grads)


def test_equal_rows_differ_by_nothing():
    for divergence, num_classes in itertools.product(DIVERGENCES, (3, 40)):
        x = make_rows(30, 7, num_classes)
        x.perturbed = x.clean[x.rows]
        value, *grads = run(x, divergence=divergence)
        assert value < 1e-14
        assert max(float(g.abs().max()) for g in grads) < 1e-8


def test_never_negative():
    """Rows that differ by a constant have the same softmax: nothing but rounding is left."""
    for seed, num_classes, scale in itertools.product(range(30), (1, 2, 20), (0.01, 1.0)):
        x = make_rows(1, 1, num_classes, scale=scale, seed=seed)
        value, *_ = run(replace(x, perturbed=x.clean + x.perturbed[:, :1]))
        assert 0 <= value < 1e-12, f"{seed}, {num_classes} classes: {value}"


@pytest.mark.parametrize("delta", [1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_nearby_rows_keep_their_digits(delta, divergence):
    """The log ratio comes from the difference of the logits; plain torch loses all of it."""
    for num_classes in (5, 33, 101):
        x = make_rows(40, 10, num_classes, scale=1.0)
        x.perturbed = x.clean[x.rows] + delta * x.perturbed
        ours = run(x, divergence=divergence)
        truth = run(x.to(torch.float64), "reference", divergence=divergence)
        for a, b, k in zip(ours, truth, (2, 8, 8), strict=True):
            error, allowed = (a - b).norm() / b.norm(), k * eps(torch.float32) / delta
            assert error <= allowed, f"{num_classes} classes: {error} > {allowed}"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_not_finite_in_nan_out(bad, divergence):
    for num_classes, scale in itertools.product((1, 6, 40), (2.0, 60.0)):
        for which in ("perturbed", "clean"):
            for dtype in (torch.float32, torch.float64):
                x = make_rows(20, 5, num_classes, scale=scale, dtype=dtype)
                r = 8 if which == "perturbed" else int(x.rows[8])
                getattr(x, which)[r, num_classes // 2] = bad
                value, grad, grad_clean = run(x, divergence=divergence)
                assert value.isnan(), f"{bad} in {which}, {num_classes} classes: {value}"
                assert grad[8].isnan().any()
                assert grad_clean[x.rows[8]].isnan().any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_dropped_rows_may_hold_anything(bad, divergence):
    for num_classes, dtype in itertools.product((1, 6, 40), (torch.float32, torch.float64)):
        x = make_rows(40, 9, num_classes, dtype=dtype)
        dropped = (x.rows == 4) | (torch.arange(40) % 3 == 0)
        x.row_weight = torch.where(dropped, 0.0, 1.5).to(dtype)
        expected = run(x, divergence=divergence)
        x.perturbed[dropped], x.clean[4] = bad, bad  # every row of clean row 4 is dropped
        ours = run(x, divergence=divergence)
        assert_same_bits(ours, expected)
        assert not ours[1][dropped].any()
        assert not ours[2][4].any()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradcheck(divergence, weighted):
    x = make_rows(6, 3, 4, weighted=weighted, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x.perturbed, x.clean)]

    def mean(perturbed, clean):
        return call(replace(x, perturbed=perturbed, clean=clean), divergence=divergence)

    torch.autograd.gradcheck(mean, leaves)


class TestRowDivergence(DivergenceTests):
    name = "row_divergence"

    def cases(self, dtype=torch.float32):
        for divergence, num_classes in (("jsd", 9), ("mse", 40), ("binary_jsd", 16)):
            x = make_rows(50, 12, num_classes, weighted=True, dtype=dtype)
            yield x, {"divergence": divergence}
        yield make_rows(700, 90, 101, weighted=True, dtype=dtype), {}

    def op_arguments(self, x, options, want_grad):
        return *x.tensors(), options["divergence"], want_grad


def draw(seed):
    """Random rows, options and upstream gradient."""
    rng = random.Random(seed)
    x = make_rows(
        rng.choice([1, 2, 7, 8, 9, 40]),
        rng.choice([1, 2, 5, 30]),
        rng.choice([1, 2, 3, 4, 8, 10, 16, 17, 33, 100]),
        scale=rng.choice([0.01, 0.3, 1.0, 3.0, 30.0, 1000.0]),
        weighted=rng.random() < 0.4,
        dtype=rng.choice(DTYPES),
        seed=seed,
    )
    return x, rng.choice([1.0, -0.3, 7.0]), {"divergence": rng.choice(DIVERGENCES)}


@pytest.mark.parametrize("part", range(5))
def test_fuzz(part):
    for seed in range(part, 150, 5):
        x, upstream, options = draw(seed)
        check(x, upstream, seed, **options)
