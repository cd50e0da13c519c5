"""permuted_divergence: the compiled kernels against the reference in float64.

Up to 32 classes (donors from a table) or 64 (shifts) a lane of a vector takes a whole row; beyond,
and always in float64, the lanes take the classes of one row. Classes here stand on both sides.
"""

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
    Batch,
    DivergenceTests,
    assert_same_bits,
    call,
    check,
    make_batch,
    on_capability,
    options_of,
    paired_off,
    run,
    unequal,
)
from oracle import Oracle
from tolerances import eps

pytestmark = needs_library

STRATEGIES = ("greedy", "independent", "collaborative")
CLEAN_PATHS = ("shared", "routed", "detached")
EXCLUDE = ("none", "self", "same_label")
SCHEMES = [
    ("table", False),
    ("table", True),
    ("cyclic", False),
    ("cyclic", True),
    ("exhaustive", False),
]
LANE_LIMITS = (31, 32, 33, 63, 64, 65)
by_scheme = pytest.mark.parametrize(("scheme", "own"), SCHEMES)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_reference_is_the_definition(divergence):
    x = make_batch(3, 4, 3, "table", own=True, present=True, weighted=True, dtype=torch.float64)
    latents = [a.requires_grad_() for a in x.contributions]
    bias = x.bias.requires_grad_()
    for exclude in EXCLUDE:
        oracle = Oracle(
            lambda z: sum(z) + bias,
            latents,
            [(bias, None)],
            x.donors,
            divergence=divergence,
            exclude=exclude,
            labels=x.labels,
            present=x.present,
            sample_weight=x.sample_weight,
        )
        for strategy, clean_path in itertools.product(STRATEGIES, CLEAN_PATHS):
            options = {"strategy": strategy, "clean_path": clean_path, "exclude": exclude}
            value, *grads = run(x, "reference", divergence=divergence, **options)
            wanted = [-g for g in oracle.gradients(strategy, clean_path)]
            torch.testing.assert_close(value, oracle.divergences(), rtol=1e-9, atol=1e-14)
            torch.testing.assert_close(grads[0], torch.stack(wanted[:-1]), rtol=1e-9, atol=1e-14)
            torch.testing.assert_close(grads[1], wanted[-1], rtol=1e-9, atol=1e-14)


@by_scheme
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_donors(scheme, own, divergence):
    for num_classes, masked in itertools.product((7, 101), (False, True)):
        x = make_batch(3, 21, num_classes, scheme, own=own, present=masked, weighted=masked)
        check(x, divergence=divergence)
        check(x, unequal(x), divergence=divergence, exclude="self", strategy="collaborative")


# M, N, C: aligned, ragged, one row to a vector and less, one class, prime and many classes
SHAPES = [
    (2, 32, 16),
    (2, 17, 7),
    (2, 2, 1),
    (3, 40, 1),
    (2, 3, 2),
    (2, 16, 33),
    (3, 15, 37),
    (2, 9, 101),
    (2, 5, 513),
    (2, 70, 11),
    *[(2, 19, num_classes) for num_classes in LANE_LIMITS],
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape):
    for (scheme, own), divergence in itertools.product(SCHEMES[::2], DIVERGENCES):
        check(make_batch(*shape, scheme, own=own), divergence=divergence)


def test_production_size():
    for scheme, dtype in (("cyclic", torch.float32), ("table", torch.bfloat16)):
        check(make_batch(2, 256, 101, scheme, count=32, dtype=dtype))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("exclude", EXCLUDE)
def test_masks_weights_and_bias(exclude, divergence):
    for present, weighted in itertools.product((False, True), repeat=2):
        given = {"present": present, "weighted": weighted}
        for (scheme, own), num_classes in itertools.product(SCHEMES[::2], (5, 70)):
            x = make_batch(3, 18, num_classes, scheme, own=own, bias=num_classes > 5, **given)
            check(x, exclude=exclude, divergence=divergence)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("clean_path", CLEAN_PATHS)
def test_routing(strategy, clean_path):
    routing = {"strategy": strategy, "clean_path": clean_path}
    for num_modalities, subsets in ((2, "all"), (4, "single"), (4, "all")):
        for num_classes in (5, 70):
            x = make_batch(num_modalities, 18, num_classes, present=True)
            for upstream in (-2.5, unequal(x, subsets)):
                check(x, upstream, subsets=subsets, **routing)


@pytest.mark.parametrize("num_modalities", range(2, 9))
def test_modalities(num_modalities):
    for subsets, num_classes in (("single", 5), ("all", 5), ("all", 66)):
        if subsets == "all" and num_modalities > 5 and num_classes > 5:
            continue
        x = make_batch(num_modalities, 9, num_classes, own=True, count=2)
        check(x, unequal(x, subsets), subsets=subsets, clean_path="routed")


def test_unequal_upstream_gradients_add_up():
    """The recomputed gradient is linear, and the scaled one is its sum over the subsets."""
    for scheme, num_classes in (("cyclic", 6), ("table", 40)):
        x = make_batch(3, 20, num_classes, scheme)
        _, *total = run(x)
        ones = torch.eye(len(options_of(x)["subsets"]))
        parts = [run(x, upstream=row)[1:] for row in ones]
        for whole, *terms in zip(total, *parts, strict=True):
            torch.testing.assert_close(sum(terms), whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    for (scheme, own), divergence in itertools.product(SCHEMES, DIVERGENCES):
        for num_classes in (10, 80):
            x = make_batch(2, 23, num_classes, scheme, own=own, weighted=True, dtype=dtype)
            check(x, divergence=divergence)
    check(x, unequal(x))
    x.bias = x.bias.to(torch.float32)
    value, grad, grad_bias = run(x)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grad.dtype == dtype
    assert grad_bias.dtype == torch.float32


@pytest.mark.parametrize("capability", capabilities())
def test_on_every_instruction_set(capability):
    cases = itertools.product(SCHEMES[::2], DIVERGENCES, (1, 9, *LANE_LIMITS[1::3], 65, 129))
    with on_capability(capability):
        for (scheme, own), divergence, num_classes in cases:
            check(make_batch(3, 21, num_classes, scheme, own=own), divergence=divergence)
        for dtype in DTYPES:
            check(make_batch(2, 33, 20, "table", present=True, dtype=dtype), exclude="self")
        for scale in (60.0, 1e4):
            check(make_batch(2, 21, 40, scale=scale))


@by_scheme
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_to_pair(dtype, scheme, own):
    cases = [(0, 5, 3), (0, 80, 3)]
    cases += [(1, 5, 3), (1, 80, 3)] if scheme != "table" else []
    cases += [(6, 5, 0), (6, 80, 0)] if scheme != "exhaustive" else []
    for num_rows, num_classes, count in cases:
        shape = (2, num_rows, num_classes)
        x = make_batch(*shape, scheme, own=own, count=count, present=True, dtype=dtype)
        value, grad, grad_bias = run(x)
        assert torch.equal(value, torch.zeros(2, dtype=dtype))
        assert torch.equal(grad, torch.zeros(shape, dtype=dtype))
        assert torch.equal(grad_bias, torch.zeros(num_classes, dtype=dtype))


@by_scheme
@pytest.mark.parametrize("num_classes", [4, 70])
def test_every_pair_dropped(scheme, own, num_classes):
    x = make_batch(2, 20, num_classes, scheme, own=own, bias=False)
    nobody = torch.zeros(20, 2, dtype=torch.bool)
    cases = [
        (Batch(x.contributions, None, x.order, x.donors, present=nobody), "none"),
        (Batch(x.contributions, None, x.order, x.donors, sample_weight=torch.zeros(20)), "none"),
        (Batch(x.contributions, None, x.order, x.donors, x.labels * 0), "same_label"),
    ]
    for y, exclude in cases:
        value, grad = run(y, exclude=exclude)
        assert torch.equal(value, torch.zeros(2))
        assert torch.equal(grad, torch.zeros_like(y.contributions))


def test_non_contiguous():
    x = make_batch(3, 12, 6, "table", own=True, present=True, weighted=True)
    expected = run(x, exclude="same_label")
    strided = x.map(lambda t: torch.stack([t, t], -1)[..., 1])
    transposed = x.map(lambda t: t.mT.contiguous().mT if t.ndim > 1 else t)
    for y in (strided, transposed):
        assert_same_bits(run(y, exclude="same_label"), expected)
    x = make_batch(3, 12, 6)
    assert_same_bits(run(x.map(lambda t: torch.stack([t, t], -1)[..., 1])), run(x))


@pytest.mark.parametrize("scale", [8.0, 60.0, 300.0, 1e4])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_far_logits(scale, divergence):
    """Stored powers underflow, and the sums of 2^w are rescaled."""
    for (scheme, own), num_classes in itertools.product(SCHEMES[::2], (2, 5, 66)):
        check(make_batch(3, 20, num_classes, scheme, own=own, scale=scale), divergence=divergence)
    for dtype in DTYPES[1:]:
        check(make_batch(3, 20, 7, scale=scale, dtype=dtype), divergence=divergence)


@by_scheme
@pytest.mark.parametrize("size", [80.0, 1e4, -1e4])
def test_one_class_has_it_all(scheme, own, size):
    """Rows of different class have nothing in common: ln 2; of the same: 0."""
    for num_classes in (24, 72):
        x = make_batch(2, 12, num_classes, scheme, own=own, bias=False)
        x.contributions = torch.zeros(2, 12, num_classes)
        x.contributions[0, torch.arange(12), torch.arange(12) * 2] = abs(size)
        x.contributions[1] = size
        value, grad = run(x, exclude="self", subsets="single")
        torch.testing.assert_close(value, torch.tensor([math.log(2), 0.0]), rtol=1e-6, atol=0)
        assert grad.isfinite().all()


def test_underflow_on_both_sides_is_zero():
    for (scheme, own), num_classes in itertools.product(SCHEMES, (6, 90)):
        x = make_batch(2, 20, num_classes, scheme, own=own, bias=False)
        x.contributions = -1e4 - 100 * x.contributions.abs()
        x.contributions[..., 0] = 0
        value, grad = run(x)
        assert not value.any()
        assert not grad.any()


@by_scheme
@pytest.mark.parametrize("num_classes", [7, 75])
def test_a_masked_class_is_no_class(scheme, own, num_classes):
    x = make_batch(2, 20, num_classes, scheme, own=own)
    value, grad, grad_bias = run(x)
    masked = make_batch(2, 20, num_classes, scheme, own=own)
    masked.contributions = torch.cat([torch.zeros(2, 20, 1), x.contributions], 2)
    masked.bias = torch.cat([torch.tensor([-1e9]), x.bias])
    got = run(masked)
    torch.testing.assert_close(got[0], value, rtol=1e-5, atol=0)
    for ours, wanted in zip(got[1:], (grad, grad_bias), strict=True):
        torch.testing.assert_close(ours[..., 1:], wanted, rtol=1e-4, atol=1e-7)
        assert not ours[..., 0].any()


@pytest.mark.parametrize("delta", [1e-2, 1e-3, 1e-4, 1e-5])
def test_nearby_rows_keep_their_digits(delta):
    """The log ratio comes from the difference of the logits; plain torch loses all of it."""
    for (scheme, own), num_classes in itertools.product(SCHEMES, (5, 33, 101)):
        x = make_batch(2, 24, num_classes, scheme, own=own, bias=False, scale=1.0)
        x.contributions = x.contributions[:, :1] + delta * x.contributions
        for divergence in DIVERGENCES:
            options = {"exclude": "self", "divergence": divergence}
            ours = run(x, **options)
            truth = run(x.to(torch.float64), "reference", **options)
            for a, b, k in zip(ours, truth, (2, 8), strict=True):
                error, allowed = (a - b).norm() / b.norm(), k * eps(torch.float32) / delta
                assert error <= allowed, f"{scheme} {num_classes} {options}: {error} > {allowed}"


@by_scheme
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_not_finite_in_nan_out(scheme, own, bad, divergence):
    for num_classes, scale in itertools.product((1, 6, 40, 70), (1.5, 60.0)):
        x = make_batch(3, 18, num_classes, scheme, own=own, scale=scale)
        for m, i in ((0, 0), (1, 17), (2, 8)):
            y = x.map(torch.clone)
            y.contributions[m, i, num_classes // 2] = bad
            value, grad, grad_bias = run(y, divergence=divergence, strategy="collaborative")
            assert value.isnan().all(), f"{bad} at {m, i}, {num_classes} classes: {value}"
            assert grad[m, i].isnan().any()
            assert grad_bias.isnan().any()
        y = x.map(torch.clone)
        y.bias[0] = bad
        assert run(y, divergence=divergence)[0].isnan().all()


@by_scheme
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_dropped_pairs_may_hold_anything(scheme, own, bad, divergence):
    for num_classes, i in itertools.product((6, 40, 70), (0, 7)):
        x = make_batch(3, 21, num_classes, scheme, own=own, present=True, weighted=True)
        x.present[i] = False  # neither a row nor a donor
        cases = [(x, "none", [i])]
        if scheme == "table":
            alone = paired_off(make_batch(3, 21, num_classes, scheme, own=own, weighted=True), i, i)
            alone.sample_weight[i] = 0
            equal = paired_off(make_batch(3, 21, num_classes, scheme, own=own), i, i + 1)
            equal.labels[i + 1] = equal.labels[i]
            cases += [(alone, "none", [i]), (alone, "self", [i]), (equal, "same_label", [i, i + 1])]
        for y, exclude, rows in cases:
            y.contributions[:, rows] = 0
            expected = run(y, divergence=divergence, exclude=exclude)
            y.contributions[:, rows] = bad
            ours = run(y, divergence=divergence, exclude=exclude)
            assert not ours[1][:, rows].any()
            for got, wanted in zip(ours, expected, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)


def test_more_than_eight_modalities():
    x = make_batch(9, 6, 4, count=2)
    assert_same_bits([call(x, None, subsets="single")], [call(x, "reference", subsets="single")])
    with pytest.raises(ValueError, match="backend='cpu' takes at most 8 modalities, got 9"):
        call(x, "cpu", subsets="single")


@pytest.mark.parametrize("divergence", DIVERGENCES)
@by_scheme
def test_gradcheck(scheme, own, divergence):
    """Finite differences see the true gradient, and routing that scales nothing gives it."""
    x = make_batch(3, 5, 3, scheme, own=own, present=True, weighted=True, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x.contributions, x.bias)]

    def divergences(contributions, bias):
        y = replace(x, contributions=contributions, bias=bias)
        return call(y, strategy="collaborative", divergence=divergence)

    torch.autograd.gradcheck(divergences, leaves)


class TestPermutedDivergence(DivergenceTests):
    name = "permuted_divergence"

    def cases(self, dtype=torch.float32):
        for scheme, num_classes in (
            ("table", 9),
            ("table", 40),
            ("cyclic", 20),
            ("exhaustive", 70),
        ):
            x = make_batch(3, 21, num_classes, scheme, present=True, weighted=True, dtype=dtype)
            yield x, {"clean_path": "routed"}
        yield make_batch(2, 90, 30, count=20, dtype=dtype), {}
        yield make_batch(2, 90, 101, "table", own=True, dtype=dtype), {"exclude": "self"}

    def op_arguments(self, x, options, want_grad):
        return *x.tensors(), *options_of(x, **options).values(), want_grad


def draw(seed):
    """A random batch, options and upstream gradient."""
    rng = random.Random(seed)
    scheme, own = rng.choice(SCHEMES)
    sizes = (rng.choice([2, 2, 3, 4]), rng.choice([1, 2, 3, 8, 16, 17, 40]))
    num_classes = rng.choice([1, 2, 3, 8, 10, *LANE_LIMITS, 100])
    x = make_batch(
        *sizes,
        num_classes,
        scheme,
        own=own,
        count=rng.choice([1, 2, 3, 9]),
        scale=rng.choice([0.01, 0.3, 1.0, 3.0, 30.0, 1000.0]),
        bias=rng.random() < 0.5,
        present=rng.random() < 0.3,
        weighted=rng.random() < 0.3,
        dtype=rng.choice(DTYPES),
        seed=seed,
    )
    options = {
        "strategy": rng.choice(STRATEGIES),
        "clean_path": rng.choice(CLEAN_PATHS),
        "subsets": rng.choice(["single", "all"]),
        "divergence": rng.choice(DIVERGENCES),
        "exclude": rng.choice(EXCLUDE),
    }
    upstream = unequal(x, options["subsets"]) if rng.random() < 0.5 else rng.choice([1.0, -0.3])
    return x, upstream, options, (seed, scheme, own)


@pytest.mark.parametrize("part", range(5))
def test_fuzz(part):
    for seed in range(part, 150, 5):
        x, upstream, options, case = draw(seed)
        check(x, upstream, case, **options)
