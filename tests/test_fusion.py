"""Additive fusions: the same function as what they are made from, with the same parameters."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from mcr_fast import AdditiveFusion, _columns
from mcr_fast.fusion import finish

N, C = 6, 3


def latents_of(*widths, dtype=torch.float32):
    return [torch.randn(N, d, dtype=dtype, requires_grad=True) for d in widths]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stack", [True, False])
@pytest.mark.parametrize("widths", [(4, 4), (4, 4, 4), (2, 5), (1, 3, 2)])
def test_from_linear_is_the_linear_layer(widths, stack, bias, monkeypatch):
    monkeypatch.setattr(_columns, "STACK_ELEMENTS", 1 << 18 if stack else 0)
    linear = nn.Linear(sum(widths), C, bias=bias).double()
    latents = latents_of(*widths, dtype=torch.float64)
    fusion = AdditiveFusion.from_linear(linear, widths)
    expected = linear(torch.cat(latents, 1))
    torch.testing.assert_close(fusion(latents), expected, rtol=0, atol=0)
    contributions = fusion.contributions(latents)
    assert contributions.shape == (len(widths), N, C)
    torch.testing.assert_close(finish(fusion, contributions), expected)
    for m, z in enumerate(latents):
        torch.testing.assert_close(fusion.project(m, z), contributions[m])

    upstream = torch.randn(N, C, dtype=torch.float64)
    wanted = torch.autograd.grad(expected, [*latents, *linear.parameters()], upstream)
    ours = torch.autograd.grad(
        finish(fusion, contributions), [*latents, *linear.parameters()], upstream
    )
    torch.testing.assert_close(ours, wanted)


def test_from_sequential_is_the_sequence():
    seq = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, C))
    latents = latents_of(3, 4)
    fusion = AdditiveFusion.from_sequential(seq, [3, 4])
    torch.testing.assert_close(fusion(latents), seq(torch.cat(latents, 1)), rtol=0, atol=0)
    torch.testing.assert_close(finish(fusion, fusion.contributions(latents)), fusion(latents))
    alone = AdditiveFusion.from_sequential(seq[:1], [3, 4])
    assert alone.head is None


def test_parameters_are_shared():
    linear = nn.Linear(8, C)
    fusion = AdditiveFusion.from_linear(linear, [4, 4])
    assert {id(p) for p in fusion.parameters()} == {id(p) for p in linear.parameters()}
    seq = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, C))
    fusion = AdditiveFusion.from_sequential(seq, [4, 4])
    assert {id(p) for p in fusion.parameters()} == {id(p) for p in seq.parameters()}
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
    assert AdditiveFusion.from_linear(linear, [4, 4])(latents_of(4, 4)).abs().max() == 0


def test_projections_bias_and_head():
    projections = [nn.Sequential(nn.Flatten(), nn.Linear(6, 5)), nn.Linear(4, 5)]
    bias = nn.Parameter(torch.randn(5))
    head = nn.Linear(5, C)
    fusion = AdditiveFusion(projections, bias, head)
    latents = [torch.randn(N, 2, 3), torch.randn(N, 4)]
    expected = head(projections[0](latents[0]) + projections[1](latents[1]) + bias)
    torch.testing.assert_close(fusion(latents), expected)
    assert fusion.num_modalities == 2
    assert "bias" in dict(fusion.named_parameters())
    assert fusion.contributions(latents).shape == (2, N, 5)


def test_bias_as_buffer_or_none():
    projections = [nn.Linear(4, C), nn.Linear(4, C)]
    fixed = AdditiveFusion(projections, torch.ones(C))
    assert "bias" in dict(fixed.named_buffers())
    assert "bias" in fixed.state_dict()
    assert AdditiveFusion(projections).bias is None


@pytest.mark.parametrize("kind", ["linear", "sequential", "projections"])
def test_copy_pickle_and_state(kind):
    fusion = {
        "linear": lambda: AdditiveFusion.from_linear(nn.Linear(8, C), [4, 4]),
        "sequential": lambda: AdditiveFusion.from_sequential(
            nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, C)), [4, 4]
        ),
        "projections": lambda: AdditiveFusion(
            [nn.Linear(4, 5), nn.Linear(4, 5)], nn.Parameter(torch.ones(5)), nn.Linear(5, C)
        ),
    }[kind]()
    latents = latents_of(4, 4)
    expected = fusion(latents)
    for other in (copy.deepcopy(fusion), pickle.loads(pickle.dumps(fusion))):
        assert torch.equal(other(latents), expected)
        assert not {id(p) for p in other.parameters()} & {id(p) for p in fusion.parameters()}
    file = io.BytesIO()
    torch.save(fusion.state_dict(), file)
    file.seek(0)
    fresh = copy.deepcopy(fusion)
    for p in fresh.parameters():
        nn.init.zeros_(p)
    fresh.load_state_dict(torch.load(file))
    assert torch.equal(fresh(latents), expected)
