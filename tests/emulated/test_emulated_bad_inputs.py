"""Donors and rows that are none, on the CUDA kernels: NaN, and nothing read outside of a tensor."""

import pytest
import torch

pytestmark = pytest.mark.process("emulated")

FORWARD = torch.ops.mcr_fast.permuted_divergence_fwd.default
BACKWARD = torch.ops.mcr_fast.permuted_divergence_bwd.default
ROWS_FORWARD = torch.ops.mcr_fast.row_divergence_fwd.default

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


@pytest.mark.parametrize("far", [False, True], ids=["plain", "far"])
@pytest.mark.parametrize("exclude", ["none", "self"])
@pytest.mark.parametrize("name", WRONG)
def test_donors_that_are_no_permutations_give_nan(name, exclude, far, monkeypatch):
    if far:
        monkeypatch.setenv("MCR_EMULATED_FAR", "1")
    order, donors = (None if x is None else torch.tensor(x) for x in WRONG[name])
    contributions = torch.randn(2, ROWS, CLASSES)
    rest = (order, donors, None, None, None, [1, 2], "independent", "shared", "jsd", exclude)
    arguments = (contributions, torch.randn(CLASSES), *rest)
    for want_grad in (False, True):
        results = FORWARD(*arguments, want_grad)
        assert all(x.isnan().all() for x in results if x.numel())
    again = BACKWARD(torch.tensor([1.0, 2.0]), *results[1:], *arguments)
    assert all(x.isnan().all() for x in again)


@pytest.mark.parametrize("row", [-1, 4, 1 << 40])
@pytest.mark.parametrize("count", [3, 300])
def test_rows_that_are_none_give_nan(row, count):
    rows = torch.arange(count) % 4
    rows[1] = row
    total, weight, to_perturbed, to_clean = ROWS_FORWARD(
        torch.randn(count, CLASSES), torch.randn(4, CLASSES), rows, None, "jsd", True
    )
    assert total.isnan()
    assert weight.isnan()  # and with it the gradients of a mean
    assert to_perturbed.shape == (count, CLASSES)
    assert to_clean.shape == (4, CLASSES)


def test_negative_weights_give_nan():
    weight = torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0])
    contributions = torch.randn(2, ROWS, CLASSES)
    rest = (None, None, None, None, weight, [1, 2], "greedy", "shared", "jsd", "none")
    assert FORWARD(contributions, None, *rest, False)[0].isnan().all()


def test_arguments_that_do_not_fit_are_refused():
    contributions = torch.randn(2, ROWS, CLASSES)
    labels = torch.zeros(ROWS - 1, dtype=torch.int64)
    rest = (None, None, labels, None, None, [1, 2], "greedy", "shared", "jsd", "same_label")
    with pytest.raises(RuntimeError, match=r"labels must have shape \[5\], got \[4\]"):
        FORWARD(contributions, None, *rest, False)
    with pytest.raises(RuntimeError, match=r"a subset of 2 modalities must be in 1\.\.3, got 4"):
        FORWARD(contributions, None, *rest[:2], None, None, None, [4], *rest[6:9], "none", False)
