"""reconstruction_loss: launcher and kernels of the CUDA library against the reference."""

import itertools

import pytest
import torch
from divergences import assert_same_bits, with_dirty_memory
from tolerances import check_gradient, check_value

from mcr_fast.ops.reconstruction_loss import reconstruction_loss

pytestmark = pytest.mark.process("emulated")

OP = "reconstruction_loss"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def make_inputs(rows, widths, dtypes=(torch.float32, torch.float32)):
    """Latents of the first dtype, their reconstruction of the second."""
    g = torch.Generator().manual_seed(0)
    *latents, reconstruction = (torch.randn(rows, d, generator=g) for d in (*widths, sum(widths)))
    return [*(z.to(dtypes[0]) for z in latents), reconstruction.to(dtypes[1])]


def run(tensors, upstream=1.0, backend="cpu"):
    leaves = [t.detach().requires_grad_() for t in tensors]
    loss = reconstruction_loss(leaves[:-1], leaves[-1], backend=backend)
    return loss.detach(), *torch.autograd.grad(loss * upstream, leaves)


def check(tensors, upstream=1.0):
    ours, plain = run(tensors, upstream), run(tensors, upstream, "reference")
    truth = run([t.double() for t in tensors], upstream, "reference")
    check_value(OP, ours[0], truth[0], plain[0])
    for results in zip(ours[1:], truth[1:], plain[1:], strict=True):
        check_gradient(OP, *results)


@pytest.mark.parametrize("dtypes", [*itertools.product(DTYPES, DTYPES)], ids=str)
def test_dtypes(dtypes):
    for rows, widths in ((1, (8,)), (7, (512, 16)), (30, (24, 104)), (5, (37, 3, 64))):
        check(make_inputs(rows, widths, dtypes), -2.5)


def test_many_rows_and_modalities():
    check(make_inputs(3000, (40, 9)))
    check(make_inputs(3, (4, 8, 1, 16, 2, 3, 64, 5, 12)))


def test_views_and_bits():
    tensors = make_inputs(20, (24, 8))
    expected = run(tensors)
    views = [torch.stack([t, t], 1)[:, 1] for t in tensors], [t.T.contiguous().T for t in tensors]
    for view in views:
        torch.testing.assert_close(run(view), expected)
    for dirty in with_dirty_memory(lambda: run(tensors)):
        assert_same_bits(dirty, expected)
    check([t[:, 1:] for t in make_inputs(6, (9, 17))[:-1]] + [torch.randn(6, 24)])


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows):
    loss, *grads = run(make_inputs(rows, (5, 3)))
    assert loss.isfinite()
    assert [len(g) for g in grads] == [rows] * 3
    assert rows or loss == 0
