"""MCRLoss without gradients, repeated, under autocast, in 16 bits, compiled."""

import copy

import pytest
import torch
from inputs import make_latents
from regularizer import LABELS, WAYS, C, D, N, mcr, setting


@pytest.mark.parametrize("kind", WAYS)
def test_without_gradients_the_value_is_the_same(kind):
    fusion, latents = setting(kind)
    loss = mcr(num_permutations="all", clean_path="routed")
    expected = loss(latents, LABELS, fusion=fusion).loss
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = loss(latents, LABELS, fusion=fusion)
        assert out.loss == expected
        assert not out.loss.requires_grad
    detached = [z.detach() for z in latents]
    frozen = copy.deepcopy(fusion).requires_grad_(False)
    out = loss(detached, LABELS, fusion=frozen)
    assert out.loss == expected
    assert not out.loss.requires_grad


@pytest.mark.parametrize("kind", WAYS)
def test_bitwise_repeatable(kind):
    results = []
    for _ in range(3):
        fusion, latents = setting(kind, 3, 9, torch.float32)
        loss = mcr(3, num_permutations=4, chunk_rows=20, clean_path="routed")
        torch.manual_seed(1)
        out = loss(latents, torch.arange(9) % C, fusion=fusion)
        out.loss.backward()
        results.append([out.loss, out.divergences, *(z.grad for z in latents)])
        results[-1] += [p.grad for p in fusion.parameters() if p.grad is not None]
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("kind", [*WAYS, "sequential"])
def test_autocast(kind):
    fusion, latents = setting(kind, dtype=torch.float32)
    loss = mcr(ceb_weight=1.0, num_permutations="all", strategy="independent")
    exact = loss(latents, LABELS, fusion=fusion)
    wanted = torch.autograd.grad(exact.loss, [*latents, *fusion.parameters()])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = loss(latents, LABELS, fusion=fusion)
    assert out.loss.dtype == out.mipd.dtype == torch.float32
    torch.testing.assert_close(out.loss, exact.loss, rtol=0.02, atol=0.02)
    ours = torch.autograd.grad(out.loss, [*latents, *fusion.parameters()])
    for a, b in zip(ours, wanted, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 0.05 * b.norm() + 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", WAYS)
def test_16_bit_latents_and_fusion(kind, dtype):
    fusion, latents = setting(kind, dtype=dtype)
    out = mcr(num_permutations="all")(latents, LABELS, fusion=fusion)
    assert out.mipd.dtype == torch.float32
    (65536 * out.loss).backward()  # as a gradient scaler would
    wide = copy.deepcopy(fusion).double()
    exact = [z.detach().double().requires_grad_() for z in latents]
    truth = mcr(num_permutations="all")(exact, LABELS, fusion=wide)
    torch.testing.assert_close(out.loss.double(), truth.loss, rtol=0.02, atol=0.02)
    (65536 * truth.loss).backward()
    for z, e in zip(latents, exact, strict=True):
        assert z.grad.dtype == dtype
        assert (z.grad.double() - e.grad).norm() <= 0.06 * e.grad.norm()


def test_compiled_without_graph_breaks():
    fusion, latents = setting(dtype=torch.float32)
    loss = mcr(ceb_weight=1.0)
    for rows in (N, 40):  # exhaustive, then 32 of 39 cyclic permutations
        latents = make_latents(3, 2, rows, D, dtype=torch.float32)
        labels = torch.arange(rows) % C
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)
        results = []
        for run in (loss, compiled):
            torch.manual_seed(5)
            out = run(latents, labels, fusion=fusion)
            results.append([*out, *torch.autograd.grad(out.loss, latents)])
        torch.testing.assert_close(*results)


def test_compiled_generic_fusion():
    fusion, latents = setting("gated", dtype=torch.float32)
    loss = mcr(num_permutations="all")
    compiled = torch.compile(loss, backend="aot_eager", dynamic=False)
    expected = loss(latents, LABELS, fusion=fusion)
    out = compiled(latents, LABELS, fusion=fusion)
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(
        torch.autograd.grad(out.loss, latents), torch.autograd.grad(expected.loss, latents)
    )
