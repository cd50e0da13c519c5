"""A fusion writes to nobody's tensors, and those of others that it uses get their gradient once."""

import pytest
import torch
import torch.nn.functional as F
from called import ROUTINGS, ROWS, C, D, Net, doubles, gradients, mcr, table_of
from inputs import generator, make_latents
from torch import nn

from mcr_fast import AdditiveFusion, MCRLoss

# The caller's tensors are the caller's


WRITES = {
    "relu": lambda z: F.relu_(z),
    "mul_": lambda z: z.mul_(0.5).add_(1.0),
    "functional": lambda z: F.leaky_relu(z, 0.2, inplace=True),
    "assignment": lambda z: z.index_copy_(1, torch.tensor([0]), z[:, 1:2].clone()),
}


class Written(nn.Module):
    def __init__(self, write, inplace):
        super().__init__()
        self.write, self.inplace = write, inplace

    def forward(self, z):
        return self.write(z if self.inplace else z.clone())


@pytest.mark.parametrize("perturbation", ["permute", "noise", "zero"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("place", ["callable", "projection", "head"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_fusions_that_work_in_place(write, place, frozen, perturbation):
    results = []
    for inplace in (False, True):
        first = [] if place == "head" else [Written(write, inplace)]
        rest = [] if place == "projection" else [Written(write, inplace)]
        parts = [nn.Sequential(*first, nn.Linear(D, D)) for _ in range(2)]
        fusion = doubles(AdditiveFusion(parts, None, nn.Sequential(*rest, nn.Linear(D, C))))
        run = (lambda z, f=fusion: f(z)) if place == "callable" else fusion
        leaves = [z.requires_grad_(not frozen) for z in make_latents(2, 2, ROWS)]
        latents = [z * 1.0 for z in leaves]
        before = [z.detach().clone() for z in latents]
        table = table_of() if perturbation == "permute" else None
        loss = mcr(strategy="independent", clean_path="routed", perturbation=perturbation)
        out = loss(latents, None, fusion=run, permutations=table, generator=generator(1))
        out.mipd.backward()
        with torch.no_grad():
            again = loss(latents, None, fusion=run, permutations=table, generator=generator(1))
        results.append([out.divergences, again.divergences, out.logits, run(latents)])
        results[-1] += [x.grad for x in [*fusion.parameters(), *leaves[: 0 if frozen else 2]]]
        torch.testing.assert_close(latents, before, rtol=0, atol=0)
    torch.testing.assert_close(*results)


def test_a_fusion_may_empty_its_list_and_return_an_input():
    latents = make_latents(2, 2, ROWS, C)

    def fusion(z):
        first = z.pop(0)
        z.clear()
        return first

    loss = MCRLoss([C, C], C, mipd_weight=1.0, contrastive_weight=0.0, strategy="collaborative")
    out = loss(latents, None, fusion=fusion, permutations=table_of())
    wanted = loss(latents, None, fusion=lambda z: z[0] * 1.0, permutations=table_of())
    torch.testing.assert_close(out.divergences, wanted.divergences)
    assert out.divergences[1] < 1e-30
    torch.testing.assert_close(
        torch.autograd.grad(out.mipd, latents[:1]), torch.autograd.grad(wanted.mipd, latents[:1])
    )


# Tensors of others


def test_the_same_tensor_for_two_modalities():
    torch.manual_seed(0)
    gate = nn.Linear(2 * D, C).double()
    fusion = lambda z: (gate(torch.cat(z, 1)) * z[0][:, :C]).sin()  # noqa: E731
    first = make_latents(2, 1, ROWS)[0]
    for routing in ROUTINGS:
        twins = [first.detach().clone().requires_grad_() for _ in range(2)]
        _, apart = gradients(fusion, twins, routing, list(gate.parameters()))
        first.grad = None
        loss = mcr(strategy=routing[0], clean_path=routing[1])
        loss([first, first], None, fusion=fusion, permutations=table_of()).mipd.backward()
        torch.testing.assert_close(first.grad, apart[0] + apart[1])


def test_a_conditioning_tensor_with_hooks_and_a_compiled_network():
    text = doubles(nn.Linear(2, D))
    net = torch.compile(text, backend="aot_eager")
    base = doubles(Net())
    words = torch.randn(2, dtype=torch.float64)
    latents = make_latents(2, 2, ROWS)
    calls = []

    def loss_of(condition):
        fusion = lambda z: base([z[0] * condition, z[1]])  # noqa: E731
        return mcr(strategy="independent", clean_path="routed", chunk_rows=3)(
            latents, None, fusion=fusion, permutations=table_of()
        ).mipd

    condition = net(words)
    condition.register_hook(lambda g: calls.append(len(calls)) or 2 * g)
    ours = torch.autograd.grad(loss_of(condition), list(text.parameters()))
    leaf = text(words).detach().requires_grad_()
    wanted = torch.autograd.grad(
        text(words), list(text.parameters()), 2 * torch.autograd.grad(loss_of(leaf), leaf)[0]
    )
    assert calls == [0]
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("routing", ROUTINGS, ids="-".join)
def test_tensors_with_a_graph_that_are_made_from_each_other(routing):
    """What flows from one to the other belongs to the caller's backward, once."""
    latents = make_latents(2, 2, ROWS)
    base = doubles(Net())
    results = []
    for outside in (True, False):
        w = torch.linspace(0.5, 1.0, D, dtype=torch.float64).requires_grad_()

        def derived(w):
            h = (w + 1).exp()
            return h, h.sin() + w

        given = derived(w) if outside else None

        def fusion(z, w=w, given=given, derived=derived):
            h, g = given or derived(w)
            return base([z[0] * h + w, z[1] * g])

        _, grads = gradients(fusion, latents, routing, [w, *base.parameters()])
        results.append(grads)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("form", ["linear", "callable"])
def test_logits_may_be_changed_in_place_after_the_loss(form):
    net = doubles(Net() if form == "callable" else nn.Linear(2 * D, C))
    out = mcr(strategy="independent")(make_latents(2, 2, ROWS), None, fusion=net)
    out.logits.mul_(2)
    (out.loss + out.logits.sum()).backward()
