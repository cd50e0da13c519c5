"""permuted_divergence on Triton's interpreter against the reference in float64."""

import dataclasses
import functools
import itertools
import math

import divergences
import pytest
import torch
from divergences import (
    DIVERGENCES,
    Batch,
    assert_same_bits,
    call,
    make_batch,
    paired_off,
    unequal,
    with_dirty_memory,
)
from tolerances import TABLE, eps

from mcr_fast.kernels import config
from mcr_fast.kernels import permuted_divergence as kernels
from mcr_fast.kernels.pairs.permutations import checked_permutations
from mcr_fast.kernels.row_divergence import row_divergence_fwd

STRATEGIES = ("greedy", "independent", "collaborative")
CLEAN_PATHS = ("shared", "routed", "detached")
SCHEMES = [
    ("table", False),
    ("table", True),
    ("cyclic", False),
    ("cyclic", True),
    ("exhaustive", False),
]
by_scheme = pytest.mark.parametrize(("scheme", "own"), SCHEMES)
check = functools.partial(divergences.check, backend="triton")
run = functools.partial(divergences.run, backend="triton")


@by_scheme
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_donors(scheme, own, divergence):
    check(make_batch(2, 4, 4, scheme, own=own, count=2), divergence=divergence)
    x = make_batch(3, 4, 4, scheme, own=own, count=1, present=True, weighted=True)
    check(x, unequal(x), divergence=divergence, exclude="self", strategy="collaborative")


# M, N, C: aligned, ragged, one row, one class, more than one tile of rows, of every width
SHAPES = [
    (2, 8, 8),
    (2, 9, 7),
    (2, 2, 1),
    (3, 5, 1),
    (2, 70, 3),
    (2, 19, 11),
    (2, 9, 33),
    (2, 3, 101),
    (2, 2, 174),
    (2, 2, 513),
    (2, 3, 1025),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape):
    for scheme, divergence in zip(("table", "cyclic", "cyclic"), DIVERGENCES, strict=True):
        check(make_batch(*shape, scheme, count=1), divergence=divergence)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("clean_path", CLEAN_PATHS)
def test_routing(strategy, clean_path):
    routing = {"strategy": strategy, "clean_path": clean_path}
    check(make_batch(2, 5, 4, count=1), -2.5, **routing)
    x = make_batch(3, 4, 4, count=1, present=True)
    check(x, unequal(x), **routing)


@pytest.mark.parametrize("num_modalities", [3, 8])
def test_modalities(num_modalities):
    x = make_batch(num_modalities, 6, 5, own=True, count=1)
    check(x, unequal(x, "single"), subsets="single", clean_path="routed")
    if num_modalities < 8:
        check(x, subsets="all", clean_path="routed")


@pytest.mark.parametrize("exclude", ["self", "same_label"])
def test_masks_weights_and_no_bias(exclude):
    for present, weighted in itertools.product((False, True), repeat=2):
        x = make_batch(2, 8, 5, "table", count=2, bias=False, present=present, weighted=weighted)
        check(x, exclude=exclude)


def test_permutations_cut_into_parts(monkeypatch):
    x = make_batch(2, 40, 6, count=7)
    assert config.parts(2, 7) == (7, 1)
    assert config.parts(300, 7) == (1, 7)
    cut = run(x)
    monkeypatch.setattr(config, "PROGRAMS", 1)
    whole = run(x)
    for a, b in zip(cut, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype, monkeypatch):
    if dtype == torch.bfloat16:
        # the interpreter cuts bfloat16 off where a GPU rounds it
        cut = dataclasses.replace(TABLE["permuted_divergence"], stored=1)
        monkeypatch.setitem(TABLE, "permuted_divergence", cut)
    for scheme, divergence in zip(("table", "cyclic", "exhaustive"), DIVERGENCES, strict=True):
        x = make_batch(2, 7, 10, scheme, count=2, weighted=True, dtype=dtype)
        check(x, divergence=divergence)
    check(x, unequal(x))
    x.bias = x.bias.to(torch.float32)
    value, grad, grad_bias = run(x)
    assert (value.dtype, grad.dtype, grad_bias.dtype) == (torch.float32, dtype, torch.float32)


@by_scheme
def test_nothing_to_pair(scheme, own):
    cases = [(0, 5, 3)]
    cases += [(1, 5, 3)] if scheme != "table" else []
    cases += [(6, 5, 0)] if scheme != "exhaustive" else []
    for num_rows, num_classes, count in cases:
        x = make_batch(2, num_rows, num_classes, scheme, own=own, count=count, present=True)
        for result in run(x):
            assert torch.equal(result, torch.zeros_like(result))


def test_every_pair_dropped():
    x = make_batch(2, 7, 4, bias=False)
    nobody = torch.zeros(7, 2, dtype=torch.bool)
    cases = [
        (Batch(x.contributions, None, x.order, x.donors, present=nobody), "none"),
        (Batch(x.contributions, None, x.order, x.donors, sample_weight=torch.zeros(7)), "none"),
        (Batch(x.contributions, None, x.order, x.donors, x.labels * 0), "same_label"),
    ]
    for y, exclude in cases:
        value, grad = run(y, exclude=exclude)
        assert torch.equal(value, torch.zeros(2))
        assert torch.equal(grad, torch.zeros_like(y.contributions))


@pytest.mark.parametrize("divergence", ["jsd", "binary_jsd"])
def test_no_pair_is_below_0(divergence, monkeypatch):
    """Rows a rounding apart: what one pair has too little is not taken from another's."""
    x = make_batch(2, 5, 6, "table", count=20, bias=False)
    x.contributions = 1 + 1e-7 * x.contributions
    ways = (functools.partial(run, x), lambda **o: [call(x, "triton", **o)])
    assert config.parts(1, 20) == (20, 1)
    pair_by_pair = [way(divergence=divergence)[0] for way in ways]
    monkeypatch.setattr(config, "PROGRAMS", 1)  # a program has all pairs of its rows
    row_by_row = [way(divergence=divergence)[0] for way in ways]
    torch.testing.assert_close(row_by_row, pair_by_pair, rtol=1e-5, atol=0)


NAMES = {"strategy": "selfish", "clean_path": "cut", "divergence": "kl", "exclude": "all"}


@pytest.mark.parametrize("name", NAMES)
def test_unknown_names_are_refused(name):
    known = {"strategy": "greedy", "clean_path": "shared", "divergence": "jsd", "exclude": "none"}
    x, bias = torch.randn(2, 4, 3), torch.zeros(3)
    given = [x, bias, None, None, None, None, None, [1, 2], *(known | {name: NAMES[name]}).values()]
    message = f"{name} must be one of '{known[name]}'.*, got '{NAMES[name]}'"
    with pytest.raises(ValueError, match=message):
        kernels.permuted_divergence_fwd(*given, False)
    with pytest.raises(ValueError, match=message):
        kernels.permuted_divergence_bwd(torch.ones(2), x, bias, *given)
    if name == "divergence":
        with pytest.raises(ValueError, match=message):
            row_divergence_fwd(x[0], x[1], torch.arange(4), None, "kl", False)


def test_non_contiguous():
    x = make_batch(3, 7, 6, "table", own=True, count=2, present=True, weighted=True)
    expected = run(x, exclude="same_label")
    strided = x.map(lambda t: torch.stack([t, t], -1)[..., 1])
    transposed = x.map(lambda t: t.mT.contiguous().mT if t.ndim > 1 else t)
    for y in (strided, transposed):
        assert_same_bits(run(y, exclude="same_label"), expected)


@pytest.mark.parametrize("scale", [8.0, 60.0, 1e4])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_far_logits(scale, divergence):
    """Powers overflow and probabilities underflow."""
    for scheme, own in SCHEMES[::2]:
        check(make_batch(2, 5, 6, scheme, own=own, count=1, scale=scale), divergence=divergence)


@pytest.mark.parametrize("size", [80.0, 1e4, -1e4])
def test_one_class_has_it_all(size):
    x = make_batch(2, 6, 13, count=2, bias=False)
    x.contributions = torch.zeros(2, 6, 13)
    x.contributions[0, torch.arange(6), torch.arange(6) * 2] = abs(size)
    x.contributions[1] = size
    value, grad = run(x, exclude="self", subsets="single")
    torch.testing.assert_close(value, torch.tensor([math.log(2), 0.0]), rtol=1e-6, atol=1e-12)
    assert grad.isfinite().all()


def test_underflow_on_both_sides_is_zero():
    x = make_batch(2, 7, 6, count=2, bias=False)
    x.contributions = -1e4 - 100 * x.contributions.abs()
    x.contributions[..., 0] = 0
    value, grad = run(x)
    assert not value.any()
    assert not grad.any()


def test_a_masked_class_is_no_class():
    x = make_batch(2, 8, 6, "table")
    value, grad, grad_bias = run(x)
    masked = make_batch(2, 8, 6, "table")
    masked.contributions = torch.cat([torch.zeros(2, 8, 1), x.contributions], 2)
    masked.bias = torch.cat([torch.tensor([-1e9]), x.bias])
    got = run(masked)
    torch.testing.assert_close(got[0], value, rtol=1e-5, atol=0)
    for ours, wanted in zip(got[1:], (grad, grad_bias), strict=True):
        torch.testing.assert_close(ours[..., 1:], wanted, rtol=1e-4, atol=1e-7)
        assert not ours[..., 0].any()


@pytest.mark.parametrize("delta", [1e-2, 1e-4])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_nearby_rows_keep_their_digits(delta, divergence):
    for scheme, num_classes in (("table", 5), ("cyclic", 33)):
        x = make_batch(2, 8, num_classes, scheme, count=2, bias=False, scale=1.0)
        x.contributions = x.contributions[:, :1] + delta * x.contributions
        options = {"exclude": "self", "divergence": divergence}
        ours = run(x, **options)
        truth = divergences.run(x.to(torch.float64), "reference", **options)
        for a, b, k in zip(ours, truth, (2, 8), strict=True):
            error, allowed = (a - b).norm() / b.norm(), k * eps(torch.float32) / delta
            assert error <= allowed, f"{scheme} {num_classes} {options}: {error} > {allowed}"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_not_finite_in_nan_out(bad, divergence):
    x = make_batch(3, 5, 6, count=1)
    for m, i in ((0, 0), (2, 4)):
        y = x.map(torch.clone)
        y.contributions[m, i, 3] = bad
        value, grad, grad_bias = run(y, divergence=divergence, strategy="collaborative")
        assert value.isnan().all(), f"{bad} at {m, i}: {value}"
        assert call(y, "triton", divergence=divergence).isnan().all()
        assert grad[m, i].isnan().any()
        assert grad_bias.isnan().any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_dropped_pairs_may_hold_anything(bad, divergence):
    for i, scheme in ((0, "table"), (5, "cyclic")):
        x = make_batch(2, 8, 6, scheme, count=2, present=True, weighted=True)
        x.present[i] = False  # neither a row nor a donor
        cases = [(x, "none", [i])]
        if scheme == "table":
            alone = paired_off(make_batch(2, 8, 6, scheme, count=2, weighted=True), i, i)
            alone.sample_weight[i] = 0
            equal = paired_off(make_batch(2, 8, 6, scheme, count=2), i, i + 1)
            equal.labels[i + 1] = equal.labels[i]
            cases += [(alone, "self", [i]), (equal, "same_label", [i, i + 1])]
        for y, exclude, rows in cases:
            y.contributions[:, rows] = 0
            expected = run(y, divergence=divergence, exclude=exclude)
            y.contributions[:, rows] = bad
            ours = run(y, divergence=divergence, exclude=exclude)
            assert not ours[1][:, rows].any()
            for got, wanted in zip(ours, expected, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)


def test_same_bits_every_run_whatever_memory_holds():
    for x, options in (
        (make_batch(2, 20, 6, count=2), {}),
        (make_batch(2, 6, 7, "table", count=1, present=True, weighted=True), {"exclude": "self"}),
    ):
        for upstream in (1.0, unequal(x)):
            expected = run(x, upstream=upstream, **options)
            again = functools.partial(run, x, upstream=upstream, **options)
            for dirty in with_dirty_memory(again):
                assert_same_bits(dirty, expected)


def test_value_without_gradient():
    for divergence in DIVERGENCES:
        x = make_batch(2, 9, 7, present=True)
        value = call(x, "triton", divergence=divergence)
        torch.testing.assert_close(value, run(x, divergence=divergence)[0], rtol=1e-5, atol=0)


def test_gradients_that_are_equal_and_those_that_may_differ():
    """The backward of a sum only scales; the same numbers in memory are compared on the device."""
    x = make_batch(3, 8, 5, count=2)
    leaves = [t.requires_grad_() for t in (x.contributions, x.bias)]
    value = call(x, "triton")
    scaled = torch.autograd.grad(value, leaves, torch.tensor(0.5).expand(6), retain_graph=True)
    compared = torch.autograd.grad(value, leaves, torch.full((6,), 0.5))
    assert_same_bits(scaled, compared)


def test_double_backward_raises():
    x = make_batch(2, 5, 4, count=1)
    x.contributions.requires_grad_()
    value = call(x, "triton").sum()
    (grad,) = torch.autograd.grad(value, x.contributions, create_graph=True)
    with pytest.raises(RuntimeError, match="permuted_divergence cannot be differentiated twice"):
        (value + grad.square().sum()).backward()


def test_compiled_equals_eager():
    x = make_batch(2, 6, 5, count=2, dtype=torch.bfloat16)

    def step(contributions, bias):
        return call(Batch(contributions, bias, x.order, x.donors), "triton").sum() * 3

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = [t.detach().clone().requires_grad_() for t in (x.contributions, x.bias)]
        loss = function(*leaves)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    assert_same_bits(*results)


ROWS, CLASSES = 5, 3
TABLES = {
    "far": [0, 1, 1 << 40, 3, 4],
    "before": [0, -1, 2, 3, 4],
    "past the end": [1, 2, 3, 4, 5],
    "twice": [1, 1, 2, 3, 4],
}
WRONG = {f"table {name}": (None, [[[1, 2, 3, 4, 0], row]]) for name, row in TABLES.items()}
WRONG |= {f"order {name}": (row, [[1, 2]]) for name, row in TABLES.items()}
WRONG |= {f"shift {shift}": ([1, 2, 3, 4, 0], [[1, shift]]) for shift in (0, -1, ROWS, 1 << 40)}
WRONG["one row of one modality"] = None, [[[1, 2, 3, 4, 0]], [[1, 1, 2, 3, 4]]]


@pytest.mark.parametrize("exclude", ["none", "self"])
@pytest.mark.parametrize("name", WRONG)
def test_donors_that_are_no_permutations_give_nan(name, exclude):
    order, donors = (None if x is None else torch.tensor(x) for x in WRONG[name])
    contributions = torch.randn(2, ROWS, CLASSES)
    arguments = {
        "contributions": contributions,
        "bias": torch.randn(CLASSES),
        "order": order,
        "donors": donors,
        "labels": None,
        "present": None,
        "sample_weight": None,
        "subsets": [1, 2],
        "strategy": "independent",
        "clean_path": "shared",
        "divergence": "jsd",
        "exclude": exclude,
    }
    for want_grad in (False, True):
        results = kernels.permuted_divergence_fwd(**arguments, want_grad=want_grad)
        assert all(x.isnan().all() for x in results if x.numel())
    again = kernels.permuted_divergence_bwd(torch.tensor([1.0, 2.0]), *results[1:], **arguments)
    assert all(x.isnan().all() for x in again)


@pytest.mark.parametrize("rows", [1, 5, 4096, 4100])
def test_checked_permutations(rows):
    given = torch.rand(3, rows).argsort(-1)
    safe, inverse, _, poison = checked_permutations(given)
    assert torch.equal(safe, given)
    assert torch.equal(inverse, given.argsort(-1))
    assert poison == 0
    given[1, rows - 1] = given[1, 0] if rows > 1 else 1
    safe, inverse, _, poison = checked_permutations(given)
    assert poison.isnan()
    assert torch.equal(safe[1], torch.arange(rows))
    assert torch.equal(inverse, safe.argsort(-1))
