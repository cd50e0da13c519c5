"""Logits that are masked with large finite numbers, or far from 0 all together (masks.py)."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from divergences import make_batch, make_rows, on_capability, run, unequal
from masks import (
    CARRIERS,
    LAYOUTS,
    MASKS,
    OFFSETS,
    ROW_SIDES,
    SIZE,
    batch_apart,
    check,
    masked_batch,
    masked_rows,
    rows_apart,
)
from tolerances import check_gradient
from torch import Tensor

from mcr_fast import functional

CAPABILITIES = ("avx512", "avx2", "portable")
BACKENDS = (*CAPABILITIES, "reference")
DIVERGENCES = ("jsd", "binary_jsd")


def on_backend(backend: str) -> Callable[..., tuple[Tensor, ...]]:
    """`run` of a backend, or of an instruction set of the CPU's."""
    if backend not in CAPABILITIES:
        return functools.partial(run, backend=backend)

    def ours(x, **options):
        with on_capability(backend):
            return run(x, "cpu", **options)

    try:
        with on_capability(backend):
            return ours
    except RuntimeError as error:
        pytest.skip(f"no {backend} here: {error}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", ROW_SIDES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_masked_rows(divergence, side, backend):
    ours = on_backend(backend)
    for mask, classes in itertools.product(MASKS, (5, 40)):
        check(masked_rows(side, mask, classes, torch.float32), ours, divergence=divergence)
    check(masked_rows(side, -1e9, 5, torch.float64), ours, divergence=divergence)
    bfloat16_min = torch.finfo(torch.bfloat16).min
    check(masked_rows(side, bfloat16_min, 5, torch.bfloat16), ours, divergence=divergence)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_masked_contributions(divergence, carrier, backend):
    ours = on_backend(backend)
    for (scheme, classes), mask in itertools.product(LAYOUTS, MASKS):
        base = make_batch(2, 19, classes, scheme, count=3, seed=5)
        check(masked_batch(carrier, mask, base), ours, divergence=divergence)
    for scheme, own in (("cyclic", False), ("table", True)):
        base = make_batch(3, 9, 5, scheme, own=own, count=3, seed=6)
        x = masked_batch(carrier, -1e9, base)
        options = {"divergence": divergence, "clean_path": "routed", "strategy": "collaborative"}
        check(x, ours, unequal(x), **options)
    base = make_batch(2, 9, 5, "cyclic", dtype=torch.float64)
    check(masked_batch(carrier, -1e9, base), ours, divergence=divergence)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", ["both", "perturbed", "clean"])
def test_rows_with_a_common_offset(side, backend):
    """The softmax does not feel it, and neither do the digits."""
    for offset, scale in itertools.product(OFFSETS, (0.05, 1.0)):
        check(rows_apart(side, offset, scale), on_backend(backend), size=4 * scale)


@pytest.mark.parametrize("backend", CAPABILITIES)  # the reference's sums keep the offset
@pytest.mark.parametrize("where", ["bias", "first", "every row"])
def test_contributions_with_a_common_offset(where, backend):
    for (scheme, classes), offset in itertools.product(LAYOUTS, OFFSETS):
        base = make_batch(2, 19, classes, scheme, count=3, seed=5)
        check(batch_apart(where, offset, base), on_backend(backend))


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
        alone = on_backend(backend)(x, divergence=divergence)
        joined = on_backend(backend)(masked, divergence=divergence)
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
        assert on_backend(backend)(x, divergence=divergence)[0].isnan()
        y = make_batch(2, 6, 4, "cyclic")
        y.contributions[0, 0, 1] = value
        if side == "both":
            y.contributions[:, :, 1] = value
        assert on_backend(backend)(y, divergence=divergence)[0].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_squared_error_of_huge_numbers(backend):
    """No saturation: it has no probabilities."""
    for size in (1e4, 1e9, 1e15):
        x = make_rows(6, 3, 4, seed=2)
        x.perturbed[:, 1] = size
        value, *grads = on_backend(backend)(x, divergence="mse")
        truth, *expected = run(x.to(torch.float64), "reference", divergence="mse")
        torch.testing.assert_close(value.double(), truth, rtol=1e-6, atol=0)
        for actual, grad in zip(grads, expected, strict=True):
            torch.testing.assert_close(actual.double(), grad, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("value", [-torch.inf, torch.inf])
def test_checks_name_infinite_logits(value, monkeypatch):
    x = make_rows(4, 4, 3, seed=2)
    x.clean[1, 1] = value
    rows = (x.perturbed, x.clean, torch.arange(4))
    contributions, bias = torch.zeros(2, 4, 3), torch.zeros(3)
    assert functional.row_divergence(*rows).isnan()
    monkeypatch.setenv("MCR_FAST_CHECK", "1")
    with pytest.raises(ValueError, match="clean holds infinite logits.* -1e9"):
        functional.row_divergence(*rows)
    with pytest.raises(ValueError, match="perturbed holds infinite"):
        functional.row_divergence(x.clean, x.perturbed, rows[2])
    bias[0] = value
    with pytest.raises(ValueError, match="bias holds infinite"):
        functional.permuted_divergence(contributions, bias=bias)
    contributions[0, 2, 1] = value
    with pytest.raises(ValueError, match="contributions holds infinite"):
        functional.permuted_divergence(contributions)
