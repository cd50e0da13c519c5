"""16 bits outside, float32 inside: autocast, 16-bit latents, and dtypes that do not go together."""

import pytest
import torch
from called import mcr, table_of
from inputs import generator, make_latents
from torch import nn

from mcr_fast import AdditiveFusion

ROWS, C, D = 12, 5, 8


def linear_fusion(kind, dtype=torch.float32):
    torch.manual_seed(1)
    linear = nn.Linear(2 * D, C).to(dtype)
    if kind == "linear":
        return linear
    if kind == "from_linear":
        return AdditiveFusion.from_linear(linear, [D, D])
    parts = [nn.Linear(D, C, bias=m == 0).to(dtype) for m in range(2)]
    with torch.no_grad():
        for part, block in zip(parts, linear.weight.chunk(2, 1), strict=True):
            part.weight.copy_(block)
        parts[0].bias.copy_(linear.bias)
    return AdditiveFusion(parts)


def mipd(fusion, latents):
    loss = mcr(width=D, classes=C, strategy="independent")
    return loss(latents, None, fusion=fusion, permutations=table_of(ROWS))


@pytest.mark.parametrize("latents_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["linear", "from_linear", "additive"])
def test_autocast_does_not_round_contributions(kind, latents_dtype):
    fusion = linear_fusion(kind)
    # rows so near each other that 16 bits would not see them apart
    latents = [
        (1 + 1e-3 * z.detach()).to(latents_dtype).requires_grad_()
        for z in make_latents(2, 2, ROWS, D, dtype=torch.float64)
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mipd(fusion, latents)
        called = fusion(torch.cat(latents, 1) if kind == "linear" else latents)
    assert out.logits.dtype == called.dtype
    wide = [z.detach().double().requires_grad_() for z in latents]
    truth = mipd(linear_fusion(kind, torch.float64), wide)
    torch.testing.assert_close(out.divergences.double(), truth.divergences, rtol=2e-3, atol=0)
    ours = torch.autograd.grad(out.mipd, latents)
    for a, b in zip(ours, torch.autograd.grad(truth.mipd, wide), strict=True):
        assert a.dtype == latents_dtype
        eps = torch.finfo(latents_dtype).eps
        assert (a.double() - b).norm() <= (2e-3 + eps) * b.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_linear_fusion_has_float32_sums(dtype):
    fusion = linear_fusion("linear", dtype)
    latents = [
        (1 + 0.02 * z.detach()).to(dtype).requires_grad_()
        for z in make_latents(2, 2, ROWS, D, dtype=torch.float64)
    ]
    out = mipd(fusion, latents)
    assert out.logits.dtype == dtype
    wide = [z.detach().double() for z in latents]
    truth = mipd(linear_fusion("linear", dtype).double(), wide)
    torch.testing.assert_close(out.divergences.double(), truth.divergences, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["linear", "from_linear"])
def test_a_latent_of_another_dtype_is_named(kind):
    latents = make_latents(2, 2, ROWS, D, dtype=torch.float32)
    latents[1] = latents[1].detach().bfloat16().requires_grad_()
    with pytest.raises(TypeError, match=r"latents\[1\] must be torch.float32 like the fusion"):
        mipd(linear_fusion(kind), latents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mipd(linear_fusion(kind), latents)
    out.loss.backward()
    assert latents[1].grad.dtype == torch.bfloat16


@pytest.mark.parametrize("scale", [1e-4, 600.0])
@pytest.mark.parametrize("kind", ["linear", "callable"])
def test_noise_of_float16_latents(kind, scale):
    """The standard deviation squares what float16 cannot hold."""
    base = make_latents(2, 2, ROWS, D, dtype=torch.float64)
    fusion = linear_fusion("linear", torch.float64)
    with torch.no_grad():
        fusion.weight.div_(scale)
    loss = mcr(width=D, classes=C, perturbation="noise", num_permutations=200)
    values = []
    for dtype in (torch.float16, torch.float64):
        latents = [(scale * z.detach()).to(torch.float16).to(dtype) for z in base]
        called = lambda z: fusion(torch.cat([x.double() for x in z], 1))  # noqa: E731
        use = called if kind == "callable" or dtype == torch.float16 else fusion
        values.append(loss(latents, None, fusion=use, generator=generator(1)).divergences)
    torch.testing.assert_close(values[0].double(), values[1], rtol=0.1, atol=0)


@pytest.mark.parametrize("kind", ["additive", "callable"])
def test_latents_of_another_dtype_are_named_for_other_fusions(kind):
    latents = [z.detach().bfloat16() for z in make_latents(2, 2, ROWS, D, dtype=torch.float32)]
    net = linear_fusion("linear")
    fusion = linear_fusion("additive") if kind == "additive" else lambda z: net(torch.cat(z, 1))
    match = r"latents\[0\] must be torch.float32" if kind == "additive" else "latents of .*bfloat16"
    with pytest.raises(TypeError, match=match):
        mipd(fusion, latents)
