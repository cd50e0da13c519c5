"""Second derivatives and forward mode: what `backend="reference"` has, and what raises."""

from functools import partial

import pytest
import torch
from inputs import make_fusion, make_latents
from losses import LOSSES, true_gradient

import mcr_fast

LABELS = torch.tensor([0, 1, 2, 0, 1])


def second(kind, perturbation="permute", **options):
    """A regularizer on the reference as a function of latents, and latents in float64."""
    case, latents = make_fusion(kind, 1, 2, 4), make_latents(2, 2, 5, 4)
    options = {
        "ceb_weight": 0.5,
        "ceb_source": "labels",
        "num_permutations": "all",
        "backend": "reference",
    } | options
    if perturbation != "permute":
        options["num_permutations"] = 1
    loss = mcr_fast.MCRLoss([4, 4], 3, perturbation=perturbation, **options).double()
    return lambda *z: loss(list(z), LABELS, fusion=case.fusion).loss, latents


@pytest.mark.parametrize("clean_path", ["shared", "routed"])
@pytest.mark.parametrize("kind", ["linear", "additive"])
def test_reference_differentiates_linear_fusions_twice(kind, clean_path):
    """By finite differences of the gradient, in which no factor but 1 routes anything."""
    function, latents = second(kind, strategy="collaborative", clean_path=clean_path)

    def gradient(*z):
        return torch.autograd.grad(function(*z), z, create_graph=True)

    assert torch.autograd.gradcheck(gradient, latents)


@pytest.mark.parametrize("strategy", ["greedy", "independent", "collaborative"])
def test_reference_has_forward_mode_for_linear_fusions(strategy):
    """The routed gradient, along a direction."""
    function, latents = second("linear", strategy=strategy)
    directions = tuple(torch.randn_like(z) for z in latents)
    _, tangent = torch.func.jvp(function, tuple(z.detach() for z in latents), directions)
    grads = torch.autograd.grad(function(*latents), latents)
    expected = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
    torch.testing.assert_close(tangent, expected)


@pytest.mark.parametrize(
    ("kind", "perturbation"),
    [("additive_head", "permute"), ("gated", "permute"), ("linear", "zero")],
)
def test_other_fusions_raise_on_the_reference_too(kind, perturbation):
    function, latents = second(kind, perturbation)
    grads = torch.autograd.grad(function(*latents), latents, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(sum(g.square().sum() for g in grads), latents)


def on_the_reference(op):
    """The op as a function of two latents, its gradient the true one."""
    return partial(LOSSES[op], backend="reference", **true_gradient(op))


@pytest.mark.parametrize("op", LOSSES)
def test_reference_differentiates_ops_twice(op):
    loss, leaves = on_the_reference(op), make_latents(3, 2, 5, 3)

    def gradient(*z):
        return torch.autograd.grad(loss(*z), z, create_graph=True)

    assert torch.autograd.gradcheck(gradient, leaves)


@pytest.mark.parametrize("op", LOSSES)
def test_reference_has_forward_mode_for_ops(op):
    loss, leaves = on_the_reference(op), make_latents(3, 2, 5, 3)
    directions = make_latents(4, 2, 5, 3)
    _, tangent = torch.func.jvp(
        loss, tuple(z.detach() for z in leaves), tuple(d.detach() for d in directions)
    )
    grads = torch.autograd.grad(loss(*leaves), leaves)
    expected = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
    torch.testing.assert_close(tangent, expected)
