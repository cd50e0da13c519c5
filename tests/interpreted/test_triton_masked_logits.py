"""Masked logits, and logits with a common offset, on Triton's interpreter."""

import functools

import divergences
import pytest
import torch
from divergences import make_batch, unequal
from masks import (
    CARRIERS,
    ROW_SIDES,
    batch_apart,
    check,
    masked_batch,
    masked_rows,
    rows_apart,
)

pytestmark = pytest.mark.process("interpreted")

run = functools.partial(divergences.run, backend="triton")
FLOAT32_MIN = torch.finfo(torch.float32).min


@pytest.mark.parametrize("side", ROW_SIDES)
@pytest.mark.parametrize("divergence", ["jsd", "binary_jsd"])
def test_masked_rows(divergence, side):
    for mask in (-1e4, -1e9, FLOAT32_MIN):
        check(masked_rows(side, mask, 5, torch.float32), run, divergence=divergence)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("divergence", ["jsd", "binary_jsd"])
def test_masked_contributions(divergence, carrier):
    for mask in (-1e4, -1e9, FLOAT32_MIN):
        base = make_batch(2, 9, 5, "cyclic", count=2, seed=5)
        check(masked_batch(carrier, mask, base), run, divergence=divergence)
    x = masked_batch(carrier, -1e6, make_batch(3, 7, 5, "table", own=True, count=2, seed=6))
    check(x, run, unequal(x), divergence=divergence, clean_path="routed")


@pytest.mark.parametrize("side", ["both", "perturbed", "clean"])
def test_rows_with_a_common_offset(side):
    for offset, scale in ((1e4, 0.05), (1e6, 1.0)):
        check(rows_apart(side, offset, scale), run, size=4 * scale)


@pytest.mark.parametrize("where", ["bias", "first", "every row"])
def test_contributions_with_a_common_offset(where):
    for offset in (1e4, -1e6):
        check(batch_apart(where, offset, make_batch(2, 9, 5, "cyclic", count=2, seed=5)), run)


@pytest.mark.parametrize("divergence", ["jsd", "binary_jsd", "mse"])
def test_infinite_logits_give_nan(divergence):
    for value in (-torch.inf, torch.inf):
        x = masked_rows("both", value, 5, torch.float32)
        assert run(x, divergence=divergence)[0].isnan()
        y = masked_batch("first", value, make_batch(2, 5, 5, "cyclic", count=2))
        assert run(y, divergence=divergence)[0].isnan().all()
