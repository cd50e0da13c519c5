"""nt_xent and sup_con: launchers and kernels of the CUDA library against the reference."""

import pytest
import torch
from contrastive import hold_to_bound, make_rows
from divergences import assert_same_bits, with_dirty_memory

from mcr_fast.ops.nt_xent import nt_xent
from mcr_fast.ops.sup_con import sup_con

pytestmark = pytest.mark.process("emulated")

OPS = {"nt_xent": nt_xent, "sup_con": sup_con}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def run(op, x, labels, present=None, temperature=0.5, upstream=1.0, backend="cpu"):
    x = x.detach().requires_grad_()
    loss = OPS[op](x, labels, present, temperature=temperature, backend=backend)
    (grad,) = torch.autograd.grad(loss * upstream, x)
    return loss.detach(), grad


def check(op, x, labels, present=None, temperature=0.5, upstream=1.0):
    given = labels, present, temperature, upstream
    ours, plain = run(op, x, *given), run(op, x, *given, "reference")
    truth = run(op, x.double(), *given, "reference")
    hold_to_bound(op, ours, truth, plain, x, temperature, upstream, (list(x.shape), x.dtype))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_against_the_reference(op, dtype, temperature):
    for shape in ((2, 3, 1), (64, 64, 6), (65, 37, 6), (33, 1, 3), (40, 8, 1), (130, 20, 60)):
        x, labels, present = make_rows(*shape, dtype)
        check(op, x, labels, None, temperature)
        check(op, x, labels, present, temperature, -2.5)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "dtype"), [("nt_xent", DTYPES[0]), ("sup_con", DTYPES[1])])
def test_more_rows_than_are_kept(op, dtype):
    """Above 4096 rows the similarities are made again, stripe by stripe."""
    x, labels, present = make_rows(4300, 4, 2000, dtype)
    check(op, x, labels, present)


@pytest.mark.parametrize("op", OPS)
def test_rows_of_blocks(op):
    """More than 1024 columns: a row is a block's."""
    x, labels, present = make_rows(1100, 9, 30, torch.bfloat16)
    check(op, x, labels, present, {"nt_xent": 0.5, "sup_con": 0.02}[op])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("rows", [0, 1, 40])
def test_nothing_to_pair(op, rows):
    x, labels, _ = make_rows(rows, 5, 0)
    if rows:
        x[0, 0] = torch.nan  # without a pair it does not matter
    loss, grad = run(op, x, labels)
    assert loss == 0
    assert grad.shape == x.shape
    assert not grad.any()


@pytest.mark.parametrize("op", OPS)
def test_absent_rows_do_not_exist(op):
    x, labels, present = make_rows(90, 12, 4)
    loss, grad = run(op, x, labels, present)
    assert not grad[~present].any()
    only, only_grad = run(op, x[present], labels[present])
    torch.testing.assert_close(only, loss)
    torch.testing.assert_close(only_grad, grad[present])
    poisoned = torch.where(present[:, None], x, torch.nan)
    assert torch.equal(loss, run(op, poisoned, labels, present)[0])
    for count in (0, 1):
        loss, grad = run(op, x, labels, torch.arange(90) < count)
        assert loss == 0
        assert not grad.any()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_not_finite_in_not_finite_out(op, bad, temperature):
    x, labels, _ = make_rows(20, 7, 3)
    x[10, 3] = bad
    loss, grad = run(op, x, labels, None, temperature)
    assert loss.isnan()
    assert grad.isnan().any()


@pytest.mark.parametrize("op", OPS)
def test_views_and_bits(op):
    x, labels, present = make_rows(60, 24, 5)
    expected = run(op, x, labels, present)
    view = torch.stack([x, x], 1)[:, 1], torch.stack([labels] * 2, 1)[:, 0]
    again = run(op, *view, torch.stack([present] * 3, 1)[:, 1])
    for dirty in [again, *with_dirty_memory(lambda: run(op, x, labels, present))]:
        assert_same_bits(dirty, expected)
    check(op, x[:, :20], labels, present)
    with torch.no_grad():
        value = OPS[op](x, labels, present, temperature=0.5, backend="cpu")
    assert torch.equal(value, expected[0])


@pytest.mark.parametrize("op", OPS)
def test_autocast_changes_nothing(op):
    x, labels, _ = make_rows(64, 32, 6)
    expected = run(op, x, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_bits(run(op, x, labels), expected)
