"""Logits that are masked with large finite numbers, or far from 0 all together.

A mask is an ordinary number: rows that agree in a masked class add nothing to it, rows that do not
are as far apart there as probabilities can be. So results are held to what they owe without the
masks, not to eps of the masks' size.
"""

import itertools
from dataclasses import replace

import pytest
import torch
from divergences import Batch, Inputs, Rows, make_batch, make_rows, on_capability, run, unequal
from tolerances import check_gradient, check_value
from torch import Tensor

from mcr_fast import functional

MASKS = (
    -1e4,
    -1e6,
    -1e9,
    torch.finfo(torch.bfloat16).min,
    torch.finfo(torch.float32).min,
)
OFFSETS = (1e3, 1e4, 1e6, -1e6)
CAPABILITIES = ("avx512", "avx2", "portable")
BACKENDS = (*CAPABILITIES, "reference")
SIZE = 8.0  # of the logits without their masks
DIVERGENCES = ("jsd", "binary_jsd")


def results(x: Inputs, backend: str, upstream: Tensor | float = 1.0, **options):
    if backend not in CAPABILITIES:
        return run(x, backend, upstream, **options)
    try:
        with on_capability(backend):
            return run(x, "cpu", upstream, **options)
    except RuntimeError as error:
        pytest.skip(f"no {backend} here: {error}")


def check(
    x: Inputs, backend: str, upstream: Tensor | float = 1.0, size: float = SIZE, **options
) -> None:
    """A backend against float64, with the digits that logits of that size have."""
    name = "row_divergence" if isinstance(x, Rows) else "permuted_divergence"
    ours = results(x, backend, upstream, **options)
    truth = run(x.to(torch.float64), "reference", upstream, **options)
    case = f"{backend} {options}"
    check_value(name, ours[0], truth[0], truth[0].to(ours[0].dtype), growth=1 + size, case=case)
    rows = len(x.rows) if isinstance(x, Rows) else x.contributions.shape[1]
    for actual, expected in zip(ours[1:], truth[1:], strict=True):
        plain = expected.to(actual.dtype)
        check_gradient(name, actual, expected, plain, growth=2 * size, floor=1 / rows, case=case)


def masked_rows(side: str, mask: float, num_classes: int, dtype: torch.dtype) -> Rows:
    x = make_rows(11, 4, num_classes, seed=3, dtype=dtype)
    sides = {"both": (x.perturbed, x.clean), "perturbed": (x.perturbed,), "clean": (x.clean,)}
    for t in sides.get(side, ()):
        t[:, 2] = mask
    if side == "added":
        x.perturbed[:, 2] += mask
        x.clean[:, 2] += mask
    if side == "rows":  # each its own class
        x.perturbed[torch.arange(11), torch.arange(11) % num_classes] = mask
        x.clean[torch.arange(4), torch.arange(4) % num_classes] = mask
    if side == "whole rows":  # an even distribution, as any row without differences
        x.perturbed[:3] = mask
        x.clean[:2] = mask
    return x


ROW_SIDES = ("both", "added", "perturbed", "clean", "rows", "whole rows")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", ROW_SIDES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_masked_rows(divergence, side, backend):
    for mask, classes in itertools.product(MASKS, (5, 40)):
        check(masked_rows(side, mask, classes, torch.float32), backend, divergence=divergence)
    check(masked_rows(side, -1e9, 5, torch.float64), backend, divergence=divergence)
    check(masked_rows(side, MASKS[3], 5, torch.bfloat16), backend, divergence=divergence)


def masked_batch(carrier: str, mask: float, base: Batch) -> Batch:
    """`base` with class 1 masked, in every row, in some, or by more than one summand."""
    x = base.map(torch.clone)
    a = x.contributions
    if carrier == "bias":
        x.bias[1] = mask
    elif carrier == "first":
        a[0, :, 1] = mask
    elif carrier == "last, added":
        a[-1, :, 1] += mask
    elif carrier == "all":
        a[:, :, 1] = mask
        x.bias[1] = mask
    elif carrier == "some rows":
        a[0, ::2, 1] = mask
        a[-1, 1::3, 3] = mask
    elif carrier == "classes of its own":
        a[0, torch.arange(a.shape[1]), torch.arange(a.shape[1]) % a.shape[2]] = mask
    return x


CARRIERS = ("bias", "first", "last, added", "all", "some rows", "classes of its own")
# lanes of rows, gathered lanes, classes in vectors
LAYOUTS = (("cyclic", 5), ("table", 6), ("cyclic", 50), ("table", 51))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_masked_contributions(divergence, carrier, backend):
    for (scheme, classes), mask in itertools.product(LAYOUTS, MASKS):
        base = make_batch(2, 19, classes, scheme, count=3, seed=5)
        check(masked_batch(carrier, mask, base), backend, divergence=divergence)
    for scheme, own in (("cyclic", False), ("table", True)):
        base = make_batch(3, 9, 5, scheme, own=own, count=3, seed=6)
        x = masked_batch(carrier, -1e9, base)
        options = {"divergence": divergence, "clean_path": "routed", "strategy": "collaborative"}
        check(x, backend, unequal(x), **options)
    base = make_batch(2, 9, 5, "cyclic", dtype=torch.float64)
    check(masked_batch(carrier, -1e9, base), backend, divergence=divergence)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", ["both", "perturbed", "clean"])
def test_rows_with_a_common_offset(side, backend):
    """The softmax does not feel it, and neither do the digits."""
    for offset, scale in itertools.product(OFFSETS, (0.05, 1.0)):
        x = make_rows(32, 8, 10, scale=scale, seed=1)
        if side == "both":  # perturbed rows near their clean ones
            x.perturbed = x.perturbed * 0.1 + x.clean[x.rows]
        if side != "clean":
            x.perturbed = x.perturbed + offset
        if side != "perturbed":
            x.clean = x.clean + offset
        check(x, backend, size=4 * scale)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["bias", "first", "all rows apart"])
def test_contributions_with_a_common_offset(where, backend):
    for (scheme, classes), offset in itertools.product(LAYOUTS, OFFSETS):
        base = make_batch(2, 19, classes, scheme, count=3, seed=5)
        x = base.map(torch.clone)
        if where == "bias":
            x.bias += offset
        elif where == "first":
            x.contributions[0] += offset
        else:
            x.contributions += offset * torch.arange(-9.0, 10)[:, None]
        if backend == "reference":  # its sums keep the offset
            continue
        check(x, backend)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_masked_linear_layer(mask, divergence):
    g = torch.Generator().manual_seed(0)
    latents = [torch.randn(16, 4, generator=g) for _ in range(2)]
    weight, bias = torch.randn(5, 8, generator=g), torch.randn(5, generator=g)
    bias[2] = mask
    results = []
    for dtype, backend in ((torch.float32, "cpu"), (torch.float64, "reference")):
        leaves = [t.to(dtype).requires_grad_() for t in (*latents, weight, bias)]
        d = functional.linear_permuted_divergence(
            leaves[:2], leaves[2], bias=leaves[3], divergence=divergence, backend=backend
        )
        results.append((d, *torch.autograd.grad(d.sum(), leaves[:3])))
    for ours, truth in zip(*results, strict=True):
        plain = truth.float()
        check_gradient("permuted_divergence", ours, truth, plain, growth=4 * SIZE, floor=0.1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_rows_that_agree_in_a_saturated_class_gain_nothing(divergence, backend):
    """By itself, next to the rows without that class."""
    for mask in MASKS:
        x = make_rows(8, 8, 4, seed=2)
        masked = replace(
            x,
            perturbed=torch.cat([x.perturbed, torch.full((8, 1), mask)], 1),
            clean=torch.cat([x.clean, torch.full((8, 1), mask)], 1),
        )
        alone = results(x, backend, divergence=divergence)
        joined = results(masked, backend, divergence=divergence)
        share = 4 / 5 if divergence == "binary_jsd" else 1.0  # a mean over the classes
        torch.testing.assert_close(joined[0], share * alone[0], rtol=2e-6, atol=0)
        for with_mask, without in zip(joined[1:], alone[1:], strict=True):
            assert (with_mask[:, 4] == 0).all()
            torch.testing.assert_close(with_mask[:, :4], share * without, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("divergence", ["jsd", "binary_jsd", "mse"])
def test_infinite_logits_give_nan(divergence, backend):
    for value, side in itertools.product((torch.inf, -torch.inf, torch.nan), ("clean", "both")):
        x = make_rows(6, 3, 4, seed=2)
        x.clean[0, 1] = value
        if side == "both":
            x.perturbed[:, 1] = value
        assert results(x, backend, divergence=divergence)[0].isnan()
        y = make_batch(2, 6, 4, "cyclic")
        y.contributions[0, 0, 1] = value
        if side == "both":
            y.contributions[:, :, 1] = value
        assert results(y, backend, divergence=divergence)[0].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_squared_error_of_huge_numbers(backend):
    """No saturation: it has no probabilities."""
    for size in (1e4, 1e9, 1e15):
        x = make_rows(6, 3, 4, seed=2)
        x.perturbed[:, 1] = size
        value, *grads = results(x, backend, divergence="mse")
        truth, *expected = run(x.to(torch.float64), "reference", divergence="mse")
        torch.testing.assert_close(value.double(), truth, rtol=1e-6, atol=0)
        for actual, grad in zip(grads, expected, strict=True):
            torch.testing.assert_close(actual.double(), grad, rtol=2e-6, atol=1e-6)
