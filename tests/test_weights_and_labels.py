"""Weights at the ends of their range, and labels that are NaN, on every backend that runs here."""

import pytest
import torch
from divergences import call, make_batch, make_rows, run

BACKENDS = ["cpu", "reference"]


@pytest.mark.parametrize("weight", [1e-45, 1e-40, 1e-30, 3e38])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_weights_are_no_weights(backend, weight):
    """However small or large they are: no sum of them and no inverse leaves the range."""
    x, y = make_batch(2, 7, 4), make_rows(9, 4, 5)
    expected = run(x, backend), run(y, backend)
    x.sample_weight, y.row_weight = torch.full((7,), weight), torch.full((9,), weight)
    for theirs, ours in zip(expected, (run(x, backend), run(y, backend)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_weights_keep_their_ratios(backend):
    x = make_batch(2, 7, 4)
    x.sample_weight = torch.tensor([1.0, 2, 3, 0, 1, 2, 4])
    expected = run(x, backend)
    x.sample_weight = x.sample_weight * 2.0**-140
    torch.testing.assert_close(run(x, backend), expected, rtol=1e-5, atol=1e-8)
    x.sample_weight = torch.zeros(7)
    assert all((t == 0).all() for t in run(x, backend))


@pytest.mark.parametrize("classes", [5, 60])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_label_is_unlike_itself(backend, classes):
    """Its row's pair with itself is kept, as one of different labels is."""
    from mcr_fast import functional

    x = make_batch(2, 6, classes, "table", count=1)
    table = torch.tensor([[1, 0, 2, 3, 5, 4]])
    labels = torch.tensor([0.0, 1.0, torch.nan, 1.0, torch.nan, 2.0])
    given = {"bias": x.bias, "backend": backend}
    d = functional.permuted_divergence(
        x.contributions, table, exclude="same_label", labels=labels, **given
    )
    # the kept pairs: all but row 3 with itself; that of row 2 adds 0 and counts
    weight = torch.tensor([1.0, 1, 1, 0, 1, 1])
    expected = functional.permuted_divergence(x.contributions, table, sample_weight=weight, **given)
    torch.testing.assert_close(d, expected, rtol=1e-6, atol=0)


def test_codes_of_integer_labels_are_themselves():
    x = make_batch(2, 6, 4, "table", count=2)
    x.labels = torch.tensor([2**62, -(2**63), 2**63 - 1, 2**62, 5, 5])
    a, b = (call(x, backend, exclude="same_label") for backend in BACKENDS)
    torch.testing.assert_close(a, b)
