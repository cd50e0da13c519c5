"""reconstruction_loss against the reference and the formula."""

import pytest
import torch
import torch.nn.functional as F
from contrastive import capabilities, needs_library, run_python
from tolerances import check_gradient, check_value
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from mcr_fast import env
from mcr_fast.ops.reconstruction_loss import reconstruction_loss
from mcr_fast.reference.reconstruction_loss import reconstruction_loss_reference

OP = "reconstruction_loss"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

# rows, widths: widths that fill no vector, one column, no column, several blocks of rows
SHAPES = [
    (8, (16, 16)),
    (7, (3, 17, 64)),
    (1, (1,)),
    (5, (0, 3)),
    (1000, (37, 53)),
    (3, (20000, 1)),
]


def make_inputs(rows, widths, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = [*widths, sum(widths)]
    tensors = [torch.randn(rows, d, generator=g, dtype=torch.float64).to(dtype) for d in sizes]
    return tensors[:-1], tensors[-1]


def run(latents, reconstruction, backend="cpu", upstream=1.0):
    """Loss, and the gradients of all inputs."""
    leaves = [t.detach().requires_grad_() for t in (*latents, reconstruction)]
    loss = reconstruction_loss(leaves[:-1], leaves[-1], backend=backend)
    return loss.detach(), torch.autograd.grad(loss * upstream, leaves)


def check(latents, reconstruction, upstream=1.0):
    ours = run(latents, reconstruction, upstream=upstream)
    plain = run(latents, reconstruction, "reference", upstream)
    truth = run([z.double() for z in latents], reconstruction.double(), "reference", upstream)
    case = (list(reconstruction.shape), reconstruction.dtype)
    check_value(OP, ours[0], truth[0], plain[0], case=case)
    for results in zip(ours[1], truth[1], plain[1], strict=True):
        check_gradient(OP, *results, case=case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_is_the_formula(dtype):
    latents, reconstruction = make_inputs(6, (3, 5), dtype)
    loss = reconstruction_loss_reference(latents, reconstruction)
    expected = F.mse_loss(reconstruction.double(), torch.cat(latents, 1).double())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    assert reconstruction_loss_reference([torch.ones(0, 3)], torch.ones(0, 3)) == 0


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(shape, dtype):
    check(*make_inputs(*shape, dtype))
    check(*make_inputs(*shape, dtype), upstream=-2.5)


@needs_library
@pytest.mark.parametrize("capability", capabilities())
def test_on_every_instruction_set(capability):
    active = env.cpu_capability()
    env.cpu_capability(capability)
    try:
        for dtype in DTYPES:
            check(*make_inputs(7, (3, 17, 64), dtype))
    finally:
        env.cpu_capability(active)


@needs_library
@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("reconstruction", DTYPES)
def test_mixed_dtypes_round_nothing(first, reconstruction):
    """The arithmetic is that of the widest; every input's gradient has its own dtype."""
    latents, h = make_inputs(9, (5, 4))
    latents[0], h = latents[0].to(first), h.to(reconstruction)
    loss, grads = run(latents, h)
    inputs = [*latents, h]
    wide = torch.float64 in (first, reconstruction)
    assert loss.dtype == (torch.float64 if wide else torch.float32)
    assert [g.dtype for g in grads] == [t.dtype for t in inputs]
    truth, expected = run([z.double() for z in latents], h.double(), "reference")
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0)
    for grad, exact in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, exact.to(grad.dtype), rtol=1e-6, atol=1e-8)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in inputs]
        assert reconstruction_loss(fake[:-1], fake[-1], backend="cpu").dtype == loss.dtype


def test_empty_batch():
    loss, grads = run(*make_inputs(0, (3, 4)))
    assert loss == 0
    assert [list(g.shape) for g in grads] == [[0, 3], [0, 4], [0, 7]]


@needs_library
def test_non_contiguous():
    latents, reconstruction = make_inputs(30, (8, 5))
    strided = [z.T.contiguous().T for z in latents]
    wide = torch.cat([reconstruction, reconstruction], 1)[:, 13:]
    expected, got = run(latents, reconstruction), run(strided, wide)
    assert torch.equal(got[0], expected[0])
    for ours, theirs in zip(got[1], expected[1], strict=True):
        assert torch.equal(ours, theirs)


@needs_library
@pytest.mark.parametrize("only", range(3))
def test_some_inputs_without_gradient(only):
    latents, reconstruction = make_inputs(9, (4, 6))
    _, expected = run(latents, reconstruction)
    leaves = [t.requires_grad_(i == only) for i, t in enumerate((*latents, reconstruction))]
    reconstruction_loss(leaves[:-1], leaves[-1], backend="cpu").backward()
    for i, leaf in enumerate(leaves):
        assert torch.equal(leaf.grad, expected[i]) if i == only else leaf.grad is None


@needs_library
def test_gradcheck():
    latents, reconstruction = make_inputs(4, (2, 3), torch.float64)
    leaves = [t.requires_grad_() for t in (*latents, reconstruction)]
    torch.autograd.gradcheck(lambda *t: reconstruction_loss(t[:-1], t[-1], backend="cpu"), leaves)


@needs_library
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_not_finite_in_not_finite_out(bad):
    for which in range(3):
        latents, reconstruction = make_inputs(40, (5, 19))
        tensors = [*latents, reconstruction]
        tensors[which][17, 4] = bad
        loss, grads = run(latents, reconstruction)
        assert not loss.isfinite()
        assert not grads[which][17, 4].isfinite()


@needs_library
def test_same_bits_every_run():
    latents, reconstruction = make_inputs(3000, (64, 65))
    first = run(latents, reconstruction)
    for _ in range(3):
        again = run(latents, reconstruction)
        assert torch.equal(first[0], again[0])
        for ours, theirs in zip(first[1], again[1], strict=True):
            assert torch.equal(ours, theirs)


@needs_library
def test_differentiated_twice():
    latents, reconstruction = make_inputs(5, (3, 4))
    leaves = [t.requires_grad_() for t in (*latents, reconstruction)]
    loss = reconstruction_loss(leaves[:-1], leaves[-1], backend="cpu")
    loss.backward(retain_graph=True)
    once = leaves[0].grad.clone()
    loss.backward()
    assert torch.equal(leaves[0].grad, 2 * once)

    loss = reconstruction_loss(leaves[:-1], leaves[-1], backend="cpu")
    for grad in torch.autograd.grad(loss, leaves, create_graph=True):
        with pytest.raises(RuntimeError, match=f"{OP} cannot be differentiated twice"):
            (loss + grad.square().sum()).backward(retain_graph=True)


@needs_library
def test_forward_mode_raises():
    latents, reconstruction = make_inputs(5, (3, 4))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(latents[0], latents[0])
        with pytest.raises(NotImplementedError, match="forward mode"):
            reconstruction_loss([dual, latents[1]], reconstruction, backend="cpu")


@needs_library
def test_opcheck():
    latents, reconstruction = make_inputs(5, (3, 4))
    forward = torch.ops.mcr_fast.reconstruction_loss_fwd.default
    backward = torch.ops.mcr_fast.reconstruction_loss_bwd.default
    torch.library.opcheck(forward, (latents, reconstruction))
    torch.library.opcheck(backward, (torch.ones(()), latents, reconstruction))
    leaves = [z.clone().requires_grad_() for z in latents]
    torch.library.opcheck(forward, (leaves, reconstruction.requires_grad_()))


@needs_library
def test_compiled_equals_eager():
    def step(latents, reconstruction):
        return reconstruction_loss(latents, reconstruction, backend="cpu") * 3

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (6, 9):
        results = []
        for function in (step, compiled):
            latents, reconstruction = make_inputs(rows, (3, 4), torch.bfloat16)
            leaves = [t.requires_grad_() for t in (*latents, reconstruction)]
            loss = function(leaves[:-1], leaves[-1])
            results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
        for eager, traced in zip(*results, strict=True):
            assert torch.equal(eager, traced)


@needs_library
def test_reads_no_uninitialised_memory():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_reconstruction_loss import make_inputs, run\n"
        "loss, grads = run(*make_inputs(90, (37, 5)))\n"
        "print(loss.item(), [g.norm().item() for g in grads])"
    )
    outputs = [run_python(code), run_python(code, MALLOC_PERTURB_="128")]
    assert outputs[0] == outputs[1] != ""
