"""The losses' CUDA kernels against the reference, their threads taken in turn on the host.

What runs on the GPU alone is not covered: the launcher that cuts the batch into parts, float16,
the sum over a block.
"""

import itertools
import shutil

import pytest
import simulated
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import check_gradient, check_value

from mcr_fast.ops.reconstruction_loss import reconstruction_loss

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")

OP = "reconstruction_loss"
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True, scope="module")
def _compiled():
    simulated.module()


def make_inputs(rows, widths, dtypes=(torch.float32, torch.float32), seed=0, scale=1.0):
    """Latents of the first dtype, their reconstruction of the second."""
    g = torch.Generator().manual_seed(seed)
    *latents, reconstruction = (
        scale * torch.randn(rows, d, generator=g, dtype=torch.float64)
        for d in (*widths, sum(widths))
    )
    return [z.to(dtypes[0]) for z in latents], reconstruction.to(dtypes[1])


def run_reference(latents, reconstruction, upstream):
    leaves = [t.detach().requires_grad_() for t in (*latents, reconstruction)]
    loss = reconstruction_loss(leaves[:-1], leaves[-1], backend="reference")
    return loss.detach(), torch.autograd.grad(loss * upstream, leaves)


def check_threads(latents, reconstruction, upstream=1.0, **how):
    loss, grads = simulated.reconstruction_loss(latents, reconstruction, upstream, **how)
    wide = [z.float() for z in latents], reconstruction.float()
    plain = run_reference(*wide, upstream)
    truth = run_reference([z.double() for z in latents], reconstruction.double(), upstream)
    case = ([z.shape[1] for z in latents], reconstruction.dtype, how)
    check_value(OP, loss, truth[0], plain[0], case=case)
    for ours, expected, in_float in zip(grads, truth[1], plain[1], strict=True):
        check_gradient(OP, ours, expected, in_float.to(ours.dtype), case=case)


@pytest.mark.parametrize("dtypes", [*itertools.product(DTYPES, DTYPES)], ids=str)
def test_every_storage_by_the_number_and_in_pieces(dtypes):
    # rows for less than a team and more than a grid; widths of one step, of whole steps, ragged
    for rows, widths in ((1, (8,)), (7, (512, 16)), (300, (24, 104)), (3, (5000, 8))):
        for in_pieces, blocks in itertools.product((False, True), (1, 3)):
            x = make_inputs(rows, widths, dtypes)
            check_threads(*x, -2.5, in_pieces=in_pieces, blocks=blocks)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.integers(0, 40),
    st.lists(st.integers(0, 80), min_size=1, max_size=4),
    st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([1e-3, 1.0, 1e4]),
    st.integers(0, 2**16),
)
def test_fuzz(rows, widths, dtypes, in_pieces, blocks, scale, seed):
    if in_pieces:
        widths = [8 * width for width in widths]
    x = make_inputs(rows, widths, dtypes, seed, scale)
    check_threads(*x, in_pieces=in_pieces, blocks=blocks)


def test_long_rows_are_added_up_in_float64():
    # 2^16 equal squares a thread: float32 alone would be off by thousands of roundings
    latents, reconstruction = [torch.zeros(1, 1 << 24)], torch.full((1, 1 << 24), 1 / 3)
    loss, _ = simulated.reconstruction_loss(latents, reconstruction)
    expected = reconstruction[0, 0].double().square()
    torch.testing.assert_close(loss.double(), expected, rtol=5e-7, atol=0)


@pytest.mark.parametrize("in_pieces", [False, True])
def test_rows_with_gaps(in_pieces):
    latents, reconstruction = make_inputs(9, (16, 40))
    spaced = [torch.cat([z, torch.full((9, 24), torch.nan)], 1)[:, : z.shape[1]] for z in latents]
    wide = torch.cat([torch.full((9, 8), torch.nan), reconstruction], 1)[:, 8:]
    expected = simulated.reconstruction_loss(latents, reconstruction, in_pieces=in_pieces)
    loss, grads = simulated.reconstruction_loss(spaced, wide, in_pieces=in_pieces)
    assert torch.equal(loss, expected[0])
    assert all(torch.equal(a, b) for a, b in zip(grads, expected[1], strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_not_finite_in_not_finite_out(bad, in_pieces):
    for which in range(3):
        latents, reconstruction = make_inputs(20, (8, 24))
        tensors = [*latents, reconstruction]
        tensors[which][17, 5] = bad
        loss, grads = simulated.reconstruction_loss(latents, reconstruction, in_pieces=in_pieces)
        assert not loss.isfinite()
        assert not grads[which][17, 5].isfinite()
        assert grads[which].isfinite().sum() == grads[which].numel() - 1
