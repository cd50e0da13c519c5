"""reconstruction_loss on interpreted Triton kernels."""

import pytest
import torch
from tolerances import check_gradient, check_value

from mcr_fast.kernels.config import TABLE, Config
from mcr_fast.ops.reconstruction_loss import reconstruction_loss

pytestmark = pytest.mark.process("interpreted")

OP = "reconstruction_loss"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# rows, widths: whole tiles, ragged ones, one column, no column, no row, several tiles each way
SHAPES = [(8, (16, 16)), (7, (3, 17, 64)), (1, (1,)), (5, (0, 3)), (0, (3, 2)), (70, (37, 41))]


@pytest.fixture
def small_tiles(monkeypatch):
    config = Config(1, {"BLOCK_R": 16, "BLOCK_D": 16}, 4)
    monkeypatch.setitem(TABLE, OP, (config,))


def make_inputs(rows, widths, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = [*widths, sum(widths)]
    tensors = [torch.randn(rows, d, generator=g, dtype=torch.float64).to(dtype) for d in sizes]
    return tensors[:-1], tensors[-1]


def run(latents, reconstruction, backend="triton", upstream=1.0):
    leaves = [t.detach().requires_grad_() for t in (*latents, reconstruction)]
    loss = reconstruction_loss(leaves[:-1], leaves[-1], backend=backend)
    return loss.detach(), torch.autograd.grad(loss * upstream, leaves)


def check(latents, reconstruction, upstream=1.0):
    ours = run(latents, reconstruction, upstream=upstream)
    plain = run(latents, reconstruction, "reference", upstream)
    truth = run([z.double() for z in latents], reconstruction.double(), "reference", upstream)
    case = (list(reconstruction.shape), reconstruction.dtype)
    check_value(OP, ours[0], truth[0], plain[0], case=case)
    for grad, true_grad, plain_grad in zip(ours[1], truth[1], plain[1], strict=True):
        if grad.dtype == torch.bfloat16:  # the interpreter truncates to it, a GPU rounds
            torch.testing.assert_close(grad.double(), true_grad, rtol=2**-7, atol=1e-30)
        else:
            check_gradient(OP, grad, true_grad, plain_grad, case=case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(shape, dtype, small_tiles):
    check(*make_inputs(*shape, dtype), upstream=-2.5)


@pytest.mark.parametrize("widths", [(16,), (100, 3), (1100, 200)])
def test_the_tiles_of_the_table(widths):
    check(*make_inputs(9, widths, torch.bfloat16))


def test_same_bits_and_no_uninitialised_memory(small_tiles, monkeypatch):
    latents, reconstruction = make_inputs(40, (19, 30))
    expected = run(latents, reconstruction)
    empty, new_empty = torch.empty_like, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(torch.nan)
    )
    again = run(latents, reconstruction)
    assert torch.equal(expected[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(expected[1], again[1], strict=True))


def test_non_contiguous(small_tiles):
    latents, reconstruction = make_inputs(20, (7, 9))
    expected = run(latents, reconstruction)
    views = [torch.stack([z, z], 1)[:, 1] for z in latents]
    got = run(views, reconstruction.T.contiguous().T)
    assert torch.equal(expected[0], got[0])
    assert all(torch.equal(a, b) for a, b in zip(expected[1], got[1], strict=True))


def test_not_finite_in_not_finite_out():
    latents, reconstruction = make_inputs(20, (7, 9))
    latents[1][3, 2] = torch.nan
    loss, grads = run(latents, reconstruction)
    assert loss.isnan()
    assert grads[1][3, 2].isnan()
    assert grads[0].isfinite().all()


def test_some_inputs_need_no_gradient():
    latents, reconstruction = make_inputs(5, (3, 4))
    expected = run(latents, reconstruction)[1]
    leaf = latents[1].requires_grad_()
    loss = reconstruction_loss([latents[0], leaf], reconstruction, backend="triton")
    (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
    assert torch.equal(grad, expected[1])
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        grad.square().sum().backward()


def test_opcheck():
    latents, reconstruction = make_inputs(5, (3, 4))
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    ops = torch.ops.mcr_fast
    forward, backward = ops.reconstruction_loss_fwd.triton, ops.reconstruction_loss_bwd.triton
    torch.library.opcheck(forward, (latents, reconstruction), test_utils=utils)
    grad = torch.tensor(2.0)
    torch.library.opcheck(backward, (grad, latents, reconstruction), test_utils=utils)
