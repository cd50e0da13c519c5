"""What README.md shows and promises."""

from functools import partial

import pytest
import torch
from inputs import make_fusion, make_latents
from losses import LOSSES, true_gradient
from readme import README, python_blocks, run_example
from torch import nn

import mcr_fast
from mcr_fast import functional as F

LABELS = torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize("index", range(len(python_blocks())))
def test_code_runs_as_it_stands(index):
    exec(compile(python_blocks()[index], str(README), "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("op", F.__all__)
def test_every_function_is_named(op):
    assert f"`functional.{op}`" in README.read_text(encoding="utf-8")


def test_example_is_algorithm_1():
    """Task loss, unimodal losses and regularizer: every part of the model gets its gradient."""
    names = run_example()
    batch = (torch.randn(64, 32), torch.randn(64, 6), torch.randint(8, (64,)))
    torch.manual_seed(1)
    loss = names["training_loss"](*batch)
    latents = [f(x) for f, x in zip(names["encoders"], batch[:2], strict=True)]
    torch.manual_seed(1)
    out = names["mcr"](latents, batch[2], fusion=names["fusion"])
    losses = [nn.functional.cross_entropy(out.logits, batch[2]), out.loss]
    for head, z in zip(names["heads"], latents, strict=True):
        losses.append(3 * nn.functional.cross_entropy(head(z), batch[2]))
    torch.testing.assert_close(loss, sum(losses))
    modules = (names["encoders"], names["heads"], names["fusion"])
    for parameter in (p for module in modules for p in module.parameters()):
        assert parameter.grad.abs().sum() > 0, "the example calls backward"


# The row on double backward and forward-mode AD


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
