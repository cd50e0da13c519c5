"""A fusion is what calling it computes: subclasses, hooks, adapters, wrappers, compiled pieces."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from called import ROUTINGS, ROWS, C, D, Net, agrees, doubles, gradients, joined, mcr, table_of
from fuzz_layers import EFFECTIVE, Adapted, Cosine
from inputs import make_latents
from oracle import Oracle
from torch import nn
from torch.nn.utils import parametrizations

from mcr_fast import AdditiveFusion

# Linear layers that compute something of their own


@pytest.mark.parametrize("form", ["itself", "from_linear"])
@pytest.mark.parametrize("kind", [Adapted, Cosine])
def test_subclasses_of_linear_are_called(kind, form):
    head = doubles(kind(2 * D, C))
    fusion = head if form == "itself" else AdditiveFusion.from_linear(head, [D, D])
    owned = [(p, None) for p in head.parameters() if p.requires_grad and p is not head.bias]
    if kind is Adapted:
        owned.append((head.bias, None))
    agrees(fusion, lambda z: head(joined(z)), owned)


def test_a_forward_that_was_replaced_is_called():
    head = doubles(nn.Linear(2 * D, C))
    inner = head.forward
    head.forward = lambda x: inner(x).tanh()
    agrees(head, lambda z: F.linear(joined(z), head.weight, head.bias).tanh(), [(head.bias, None)])


@pytest.mark.parametrize("hook", ["forward", "pre", "on_fusion"])
def test_forward_hooks_take_part_and_projections_stay_the_modalities_own(hook):
    head = doubles(nn.Linear(2 * D, C))
    fusion = AdditiveFusion.from_linear(head, [D, D]) if hook == "on_fusion" else head
    blocks = [b.detach().clone().requires_grad_() for b in head.weight.chunk(2, 1)]

    def function(z):
        z = [2 * x for x in z] if hook == "pre" else z
        logits = sum(x @ b.T for x, b in zip(z, blocks, strict=True)) + head.bias
        return logits if hook == "pre" else 3 * logits

    if hook == "pre":
        head.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    else:
        fusion.register_forward_hook(lambda module, args, out: 3 * out)
    latents = make_latents(2, 2, ROWS)
    owned = [(b, m) for m, b in enumerate(blocks)] + [(head.bias, None)]
    oracle = Oracle(function, latents, owned, table_of())
    for routing in ROUTINGS:
        out, grads = gradients(fusion, latents, routing, [head.weight, head.bias])
        wanted = oracle.gradients(*routing)
        wanted[2:4] = [torch.cat(wanted[2:4], 1)]
        torch.testing.assert_close(out.divergences, oracle.divergences())
        torch.testing.assert_close(grads, wanted)


class Sub(AdditiveFusion):
    """Adds nothing to the class."""


@pytest.mark.parametrize("kind", [AdditiveFusion, Sub])
def test_projections_of_a_hooked_additive_fusion_stay_the_modalities_own(kind):
    parts = [nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 5)) for _ in range(2)]
    fusion = doubles(kind(parts, None, nn.Linear(5, C)))
    plain, latents, seen = copy.deepcopy(fusion), make_latents(2, 2, ROWS), []
    fusion.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    for routing in ROUTINGS:
        results = [gradients(f, latents, routing, list(f.parameters()))[1] for f in (fusion, plain)]
        torch.testing.assert_close(*results)
    assert seen


REPARAMETRIZED = EFFECTIVE | {"orthogonal": parametrizations.orthogonal}


def reparametrized(name):
    torch.manual_seed(1)
    return REPARAMETRIZED[name](nn.Linear(2 * D, C).double())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the old weight and spectral norm
@pytest.mark.parametrize("form", ["itself", "from_linear", "compiled"])
@pytest.mark.parametrize("name", [name for name in REPARAMETRIZED if name != "linear"])
def test_reparametrized_linear_layers(name, form):
    """Value of the module as it is called; the columns of the weight that is used are routed."""
    made, twin = (reparametrized(name) for _ in range(2))
    latents = make_latents(2, 2, ROWS)
    for routing in ROUTINGS:
        forms = {
            "itself": lambda: made,
            "from_linear": lambda: AdditiveFusion.from_linear(made, [D, D]),
            "compiled": lambda: torch.compile(made, backend="eager"),
        }
        out, ours = gradients(forms[form](), latents, routing, list(made.parameters()))
        expected = twin(joined(latents))  # what a call gives, and what it does to the state
        torch.testing.assert_close(out.logits, expected)
        for a, b in zip(made.buffers(), twin.buffers(), strict=True):
            assert torch.equal(a, b)
        # by hand: a plain layer with the weight that the call used, then back through what made it
        weight = twin.eval().weight
        twin.train()
        plain = nn.Linear(2 * D, C).double()
        with torch.no_grad():
            plain.weight.copy_(weight)
            plain.bias.copy_(twin.bias)
        used, wanted = gradients(plain, latents, routing, [plain.weight, plain.bias])
        torch.testing.assert_close(out.divergences, used.divergences)
        torch.testing.assert_close(ours[:2], wanted[:2])
        sources = [p for p in twin.parameters() if p is not twin.bias]
        found = zip(made.parameters(), ours[2:], strict=True)
        through = torch.autograd.grad(weight, sources, wanted[2])
        torch.testing.assert_close([g for p, g in found if p is not made.bias], through)
        assert any(g.abs().max() > 0 for g in ours[2:])


def test_a_lazy_linear_layer_is_taken_from_the_first_step_on():
    latents = make_latents(2, 2, ROWS, dtype=torch.float32)
    for make in (lambda x: x, lambda x: AdditiveFusion.from_linear(x, [D, D])):
        lazy = nn.LazyLinear(C)
        fusion = make(lazy)
        out = mcr()(latents, None, fusion=fusion, permutations=table_of())
        plain = nn.Linear(2 * D, C)
        plain.load_state_dict(lazy.state_dict())
        wanted = mcr()(latents, None, fusion=plain, permutations=table_of())
        torch.testing.assert_close(out.divergences, wanted.divergences)
        torch.testing.assert_close(out.logits, wanted.logits)


class Wrapper(nn.Module):
    """What a wrapper of somebody else's looks like."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args):
        return self.module(*args)


def test_a_module_over_joined_latents_is_explained():
    latents = make_latents(2, 2, ROWS)
    with pytest.raises(TypeError, match=r"fusion could not be called with the list.*torch\.cat"):
        mcr()(latents, None, fusion=Wrapper(doubles(nn.Linear(2 * D, C))))


def test_from_sequential_refuses_what_it_would_leave_out():
    seq = nn.Sequential(nn.Linear(2 * D, 6), nn.Linear(6, C))
    seq.register_forward_hook(lambda module, args, out: 2 * out)
    with pytest.raises(TypeError, match="seq must be no more than its layers"):
        AdditiveFusion.from_sequential(seq, [D, D])


def test_quantized_weights_are_called():
    class Halved(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            args = [a.as_subclass(torch.Tensor) / 2 if type(a) is cls else a for a in args]
            return func(*args, **(kwargs or {}))

    head = doubles(nn.Linear(2 * D, C)).requires_grad_(False)
    plain = copy.deepcopy(head)
    with torch.no_grad():
        plain.weight.div_(2)
    del head._parameters["weight"]
    head.weight = plain.weight.detach().mul(2).as_subclass(Halved)
    agrees(head, lambda z: plain(joined(z)))


# Compiled pieces


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("piece", ["fusion", "function", "block", "in place", "head", "linear"])
def test_compiled_pieces_train(piece, backend):
    compile_ = functools.partial(torch.compile, backend=backend)
    results = []
    for compiled in (False, True):
        net = Net()
        fusion = {
            "head": lambda n=net: AdditiveFusion(
                [nn.Linear(D, 6) for _ in range(2)], None, nn.Sequential(nn.Tanh(), n.b)
            ),
            "linear": lambda: nn.Linear(2 * D, C),
        }.get(piece, lambda n=net: n)()
        parameters = list(doubles(fusion).parameters())
        if piece == "function":
            fusion = lambda z, net=net: net(z)  # noqa: E731
        if compiled and piece in ("fusion", "function", "linear"):
            fusion = compile_(fusion)
        elif compiled and piece == "block":
            net.a = compile_(net.a)
        elif compiled and piece == "in place":
            net.compile(backend=backend)
        elif compiled:
            fusion.head = compile_(fusion.head)
        latents = make_latents(2, 2, ROWS)
        results.append([])
        for routing in ROUTINGS:
            out, grads = gradients(fusion, latents, routing, parameters)
            results[-1] += [out.divergences, *grads]
    torch.testing.assert_close(*results)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", ["script", "trace", "freeze"])
def test_torchscript_fusions(make):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2 * D, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, C)).double()
    latents = make_latents(2, 2, ROWS)
    if make == "freeze":
        made = torch.jit.freeze(torch.jit.script(copy.deepcopy(net).eval()))
    elif make == "script":
        made = torch.jit.script(copy.deepcopy(net))
    else:
        made = torch.jit.trace(copy.deepcopy(net).eval(), torch.cat(latents, 1))
    fusion = lambda z: made(torch.cat(z, 1))  # noqa: E731
    out = mcr(strategy="independent")(latents, None, fusion=fusion, permutations=table_of())
    grads = torch.autograd.grad(out.mipd, latents)
    if make == "script":
        net(torch.cat(latents, 1))
        assert made[1].num_batches_tracked == 1
        assert made.training
    net.eval()
    wanted = mcr(strategy="independent")(latents, None, fusion=net, permutations=table_of())
    torch.testing.assert_close(out.divergences, wanted.divergences)
    torch.testing.assert_close(grads, torch.autograd.grad(wanted.mipd, latents))


def test_a_linear_forward_that_was_replaced_for_all_is_called(monkeypatch):
    inner = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: inner(self, x).tanh())
    head, latents = doubles(nn.Linear(2 * D, C)), make_latents(2, 2, ROWS)
    out = mcr()(latents, None, fusion=head, permutations=table_of())
    wanted = mcr()(latents, None, fusion=lambda z: head(joined(z)), permutations=table_of())
    torch.testing.assert_close(out.divergences, wanted.divergences)
    torch.testing.assert_close(out.logits, head(joined(latents)))


@pytest.mark.parametrize("kind", ["integer", "sparse"])
def test_logits_that_are_no_dense_floats_are_refused(kind):
    net, latents = doubles(Net()), make_latents(2, 2, ROWS)
    make = {"integer": lambda x: x.long(), "sparse": lambda x: x.to_sparse()}[kind]
    with pytest.raises(TypeError, match="fusion must return dense float logits"):
        mcr()(latents, None, fusion=lambda z: make(net(z)))
