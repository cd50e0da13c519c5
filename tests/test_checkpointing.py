"""Activation checkpointing around the loss: the same donors when the forward runs again."""

import pytest
import torch
from inputs import generator, make_fusion, make_latents
from torch.utils.checkpoint import checkpoint

import mcr_fast
from mcr_fast import MCRLoss

ROWS, C, D = 9, 3, 4
WAYS = ("linear", "additive_head", "gated")


def stack(kind):
    torch.manual_seed(0)
    case = make_fusion(kind, 1, 2)
    encoders = torch.nn.ModuleList(torch.nn.Linear(D, D) for _ in range(2)).double()
    loss = MCRLoss([D, D], C, num_permutations=3, mipd_weight=1.0, strategy="independent")
    return case.fusion, encoders, loss


def run(kind, wrap, drawn_by, calls=1):
    """Gradients of a step whose loss is called in `wrap`, and the generator's state after it."""
    fusion, encoders, loss = stack(kind)
    inputs = [z.detach() for z in make_latents(2, 2, ROWS)]
    g = generator(5)

    def part(*xs):
        latents = [encode(x).tanh() for encode, x in zip(encoders, xs, strict=True)]
        total = 0
        for _ in range(calls):
            total = total + loss(latents, None, fusion=fusion, **drawn_by(g)).loss
        return total

    torch.manual_seed(3)
    (wrap(part, *inputs) + wrap(part, *inputs)).backward()
    grads = [p.grad for p in [*encoders.parameters(), *fusion.parameters()]]
    return grads, g.get_state()


def checkpointed(part, *xs):
    return checkpoint(part, *xs, use_reentrant=False)


def reentrant(part, *xs):
    first = xs[0].detach().requires_grad_()
    return checkpoint(part, first, *xs[1:], use_reentrant=True)


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("kind", WAYS)
def test_a_generator_draws_the_same_donors_again(kind, calls):
    plain, end = run(kind, lambda part, *xs: part(*xs), lambda g: {"generator": g}, calls)
    again, end_again = run(kind, checkpointed, lambda g: {"generator": g}, calls)
    assert torch.equal(end, end_again)
    torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("wrap", [checkpointed, reentrant])
@pytest.mark.parametrize("kind", WAYS)
def test_the_default_generator_and_permutations(kind, wrap):
    table = mcr_fast.sample_permutations(3, ROWS, generator=generator(4)).index()
    for drawn_by in (lambda g: {}, lambda g: {"permutations": table}):
        plain, _ = run(kind, lambda part, *xs: part(*xs), drawn_by)
        again, _ = run(kind, wrap, drawn_by)
        torch.testing.assert_close(plain, again)


def test_reentrant_checkpointing_asks_for_permutations():
    with pytest.raises(RuntimeError, match=r"permutations=sample_permutations"):
        run("linear", reentrant, lambda g: {"generator": g})


def test_a_retained_graph_is_recomputed_twice_with_the_same_donors():
    fusion, encoders, loss = stack("gated")
    inputs = [z.detach() for z in make_latents(2, 2, ROWS)]
    g = generator(5)

    def part(*xs):
        latents = [encode(x) for encode, x in zip(encoders, xs, strict=True)]
        return loss(latents, None, fusion=fusion, generator=g).loss

    out = checkpointed(part, *inputs)
    parameters = list(encoders.parameters())
    first = torch.autograd.grad(out, parameters, retain_graph=True)
    again = torch.autograd.grad(out, parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_checkpointing_inside_a_fusion():
    case = make_fusion("gated", 1, 2)
    latents = make_latents(2, 2, ROWS)
    loss = MCRLoss([D, D], C, contrastive_weight=0.0, mipd_weight=1.0, strategy="independent")
    table = mcr_fast.sample_permutations(3, ROWS, generator=generator(4))
    results = []
    for fusion in (case.fusion, lambda z: checkpointed(lambda *x: case.fusion(list(x)), *z)):
        out = loss(latents, None, fusion=fusion, permutations=table)
        tensors = [*latents, *case.fusion.parameters()]
        results.append(torch.autograd.grad(out.loss, tensors))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("kind", WAYS)
def test_checkpointing_around_the_encoders(kind, use_reentrant):
    fusion, encoders, loss = stack(kind)
    inputs = make_latents(2, 2, ROWS)
    results = []
    for wrap in (lambda part, x: part(x), checkpoint):
        how = {"use_reentrant": use_reentrant} if wrap is checkpoint else {}
        torch.manual_seed(3)
        latents = [wrap(encode, x, **how) for encode, x in zip(encoders, inputs, strict=True)]
        loss(latents, None, fusion=fusion).loss.backward()
        parameters = [*encoders.parameters(), *fusion.parameters()]
        results.append([p.grad for p in parameters])
        for p in parameters:
            p.grad = None
    torch.testing.assert_close(*results)


def test_a_reentrant_checkpoint_inside_a_fusion_is_named():
    case = make_fusion("gated", 1, 2)

    def fusion(latents):
        return checkpoint(lambda *z: case.fusion(list(z)), *latents, use_reentrant=True)

    with pytest.raises(RuntimeError, match="fusion holds a checkpoint with use_reentrant=True"):
        MCRLoss([D, D], C)(make_latents(2, 2, ROWS), None, fusion=fusion)


def test_permutations_drawn_inside_are_the_same_again():
    def drawn_by(g):
        return {"permutations": mcr_fast.sample_permutations(3, ROWS, generator=g)}

    plain, end = run("gated", lambda part, *xs: part(*xs), drawn_by)
    again, end_again = run("gated", checkpointed, drawn_by)
    assert torch.equal(end, end_again)
    torch.testing.assert_close(plain, again)
