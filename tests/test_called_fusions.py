"""A fusion is what calling it computes: hooks, adapters, wrappers, modes. It writes nowhere."""

import copy
import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from inputs import generator, make_latents
from oracle import Oracle
from torch import nn
from torch.nn.utils import parametrizations, prune

import mcr_fast
from mcr_fast import AdditiveFusion, MCRLoss

ROWS, C, D = 5, 3, 4
ROUTINGS = [("greedy", "routed"), ("independent", "shared"), ("collaborative", "detached")]


def table_of(num_modalities=2, seed=3):
    return mcr_fast.sample_permutations(2, ROWS, generator=generator(seed)).index()


def mcr(num_modalities=2, **options):
    options = {"mipd_weight": 1.0, "contrastive_weight": 0.0} | options
    return MCRLoss([D] * num_modalities, C, **options)


def doubles(module):
    torch.manual_seed(7)
    for p in module.parameters():
        with torch.no_grad():
            p.copy_(torch.randn(p.shape))
    return module.double()


def gradients(fusion, latents, routing, parameters, **arguments):
    """Divergences, logits, and the gradient of L_MIPD to the latents and the parameters."""
    for x in [*latents, *parameters]:
        x.grad = None
    loss = mcr(len(latents), strategy=routing[0], clean_path=routing[1], **arguments)
    out = loss(latents, None, fusion=fusion, permutations=table_of(len(latents)))
    out.mipd.backward()
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in [*latents, *parameters]]
    return out, grads


def agrees(fusion, function, owned=(), *, routings=ROUTINGS, num_modalities=2):
    """MCRLoss with `fusion` is the oracle with `function`; `owned`: tensors, and whose they are.

    `function` uses the tensors of `owned` themselves.
    """
    latents = make_latents(2, num_modalities, ROWS)
    oracle = Oracle(function, latents, owned, table_of(num_modalities))
    for routing in routings:
        out, grads = gradients(fusion, latents, routing, [x for x, _ in owned])
        torch.testing.assert_close(out.divergences, oracle.divergences(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(out.logits, function(latents), rtol=1e-9, atol=1e-12)
        for ours, wanted in zip(grads, oracle.gradients(*routing), strict=True):
            torch.testing.assert_close(
                ours, wanted, rtol=1e-8, atol=1e-12, msg=lambda m, r=routing: f"{r}: {m}"
            )


def joined(z):
    return torch.cat(list(z), -1)


# Linear layers that compute something of their own


class Adapted(nn.Linear):
    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
        self.down = nn.Parameter(torch.randn(2, in_features))
        self.up = nn.Parameter(torch.randn(out_features, 2))
        self.weight.requires_grad_(False)

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up.T


class Cosine(nn.Linear):
    def forward(self, x):
        return 10 * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


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
        for a, b in zip(grads, wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_projections_of_a_hooked_additive_fusion_stay_the_modalities_own():
    parts = [nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 5)) for _ in range(2)]
    fusion = doubles(AdditiveFusion(parts, None, nn.Linear(5, C)))
    plain = copy.deepcopy(fusion)
    seen = []
    fusion.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    latents = make_latents(2, 2, ROWS)
    for routing in ROUTINGS:
        results = [gradients(f, latents, routing, list(f.parameters()))[1] for f in (fusion, plain)]
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)
    assert seen


def weight_norm(linear):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(linear)


def pruned(linear):
    prune.random_unstructured(linear, "weight", 0.3)
    return linear


REPARAMETRIZED = {
    "weight_norm": weight_norm,
    "spectral_norm": lambda x: nn.utils.spectral_norm(x),
    "pruned": pruned,
    "parametrized weight_norm": parametrizations.weight_norm,
    "parametrized spectral_norm": parametrizations.spectral_norm,
    "parametrized orthogonal": parametrizations.orthogonal,
}


def reparametrized(name):
    torch.manual_seed(1)
    return REPARAMETRIZED[name](nn.Linear(2 * D, C).double())


@pytest.mark.parametrize("form", ["itself", "from_linear", "compiled"])
@pytest.mark.parametrize("name", REPARAMETRIZED)
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
        through = torch.autograd.grad(weight, sources, wanted[2])
        found = {id(p): g for p, g in zip(made.parameters(), ours[2:], strict=True)}
        names = dict(made.named_parameters())
        for (key, source), grad in zip(
            [(k, p) for k, p in twin.named_parameters() if p is not twin.bias], through, strict=True
        ):
            assert source.shape == names[key].shape
            torch.testing.assert_close(found[id(names[key])], grad)
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


def test_a_sequence_over_joined_latents_is_a_callable():
    seq = doubles(nn.Sequential(nn.Linear(2 * D, 6), nn.Tanh(), nn.Linear(6, C)))
    agrees(seq, lambda z: seq(joined(z)), [(p, None) for p in seq.parameters()])


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


# The caller's tensors are the caller's


class InPlace(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.fc = kind, nn.Linear(2 * D, C)
        self.act = nn.LeakyReLU(0.2, inplace=True)

    def write(self, z):
        if self.kind == "module":
            return self.act(z)
        if self.kind == "mul_":
            return z.mul_(0.5).add_(1.0)
        if self.kind == "elu_":
            return F.elu_(z)
        if self.kind == "functional":
            return F.leaky_relu(z, 0.2, inplace=True)
        z[:, 0] = z[:, 1]
        return z

    def read(self, z):
        if self.kind in ("module", "functional"):
            return F.leaky_relu(z, 0.2)
        if self.kind == "mul_":
            return z * 0.5 + 1
        return F.elu(z) if self.kind == "elu_" else torch.cat([z[:, 1:2], z[:, 1:]], 1)

    def forward(self, zs):
        return self.fc(torch.cat([self.write(z) for z in zs], 1))


WRITES = ("module", "mul_", "elu_", "functional", "assignment")


@pytest.mark.parametrize("perturbation", ["permute", "noise", "zero"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", WRITES)
def test_fusions_that_work_in_place(kind, frozen, perturbation):
    fusion = doubles(InPlace(kind))
    quiet = functools.partial(lambda f, z: f.fc(torch.cat([f.read(x) for x in z], 1)), fusion)
    base = make_latents(2, 2, ROWS)
    results = []
    for run in (fusion, lambda z: fusion(z), quiet):
        leaves = [z.detach().clone().requires_grad_(not frozen) for z in base]
        latents = [z * 1.0 for z in leaves]
        before = [z.detach().clone() for z in latents]
        table = table_of() if perturbation == "permute" else None
        loss = mcr(strategy="independent", clean_path="routed", perturbation=perturbation)
        out = loss(latents, None, fusion=run, permutations=table, generator=generator(1))
        fusion.zero_grad()
        out.mipd.backward()
        assert all(torch.equal(a, b) for a, b in zip(latents, before, strict=True))
        grads = [p.grad for p in fusion.parameters()]
        grads += [] if frozen else [z.grad for z in leaves]
        with torch.no_grad():
            again = loss(latents, None, fusion=run, permutations=table, generator=generator(1))
        assert all(torch.equal(a, b) for a, b in zip(latents, before, strict=True))
        results.append([out.divergences, again.divergences, out.logits, *grads])
    for other in results[:-1]:
        for a, b in zip(other, results[-1], strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("place", ["projection", "head"])
def test_additive_fusions_that_work_in_place(place):
    results = []
    for inplace in (False, True):
        torch.manual_seed(0)
        first = [nn.ReLU(inplace=inplace)] if place == "projection" else []
        parts = [nn.Sequential(*first, nn.Linear(D, 5)) for _ in range(2)]
        rest = [nn.Sequential(nn.ReLU(inplace=inplace)), nn.Linear(5, C)]
        fusion = AdditiveFusion(parts, None, nn.Sequential(*rest)).double()
        leaves = make_latents(2, 2, ROWS)
        latents = [z * 1.0 for z in leaves]
        before = [z.detach().clone() for z in latents]
        out = mcr(strategy="independent")(latents, None, fusion=fusion, permutations=table_of())
        out.mipd.backward()
        assert all(torch.equal(a, b) for a, b in zip(latents, before, strict=True))
        direct = fusion(latents)
        assert all(torch.equal(a, b) for a, b in zip(latents, before, strict=True))
        results.append([out.divergences, direct, *(z.grad for z in leaves)])
        results[-1] += [p.grad for p in fusion.parameters()]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


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
    for a, b in zip(
        torch.autograd.grad(out.mipd, latents[:1]),
        torch.autograd.grad(wanted.mipd, latents[:1]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


# Compiled pieces


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2 * D, 6), nn.Linear(6, C)

    def forward(self, zs):
        return self.b(torch.tanh(self.a(torch.cat(list(zs), 1))))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("piece", ["fusion", "function", "block", "in place", "head", "linear"])
def test_compiled_pieces_train(piece, backend):
    compile_ = functools.partial(torch.compile, backend=backend)
    results = []
    for compiled in (False, True):
        net = doubles(Net())
        head = nn.Sequential(nn.Tanh(), net.b)
        fusion = {
            "fusion": net,
            "function": lambda z, net=net: net(z),
            "block": net,
            "in place": net,
            "head": AdditiveFusion([nn.Linear(D, 6).double() for _ in range(2)], None, head),
            "linear": nn.Linear(2 * D, C).double(),
        }[piece]
        if isinstance(fusion, nn.Module):
            doubles(fusion)
        parameters = list(net.parameters())
        if isinstance(fusion, nn.Module):
            parameters = list(fusion.parameters())
        if compiled and piece in ("fusion", "function", "linear"):
            fusion = compile_(fusion)
        elif compiled and piece == "block":
            net.a = compile_(net.a)
        elif compiled and piece == "in place":
            net.compile(backend=backend)
        elif compiled:
            fusion.head = compile_(fusion.head)
        latents = make_latents(2, 2, ROWS)
        for routing in ROUTINGS:
            out, grads = gradients(fusion, latents, routing, parameters)
            results.append((routing, [out.divergences, *grads]))
    half = len(results) // 2
    for (routing, a), (_, b) in zip(results[:half], results[half:], strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, msg=lambda m, r=routing: f"{r}: {m}")


# What the regularizer's runs share: the mode


def test_dropout_makes_no_modality_important():
    torch.manual_seed(0)
    fusion = nn.Sequential(nn.Linear(2 * D, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, C))
    with torch.no_grad():
        fusion[0].weight[:, D:] = 0
    latents = make_latents(2, 2, ROWS, dtype=torch.float32)
    forms = {
        "sequence": fusion,
        "function": lambda z: fusion(torch.cat(z, 1)),
        "functional": lambda z: F.dropout(fusion(torch.cat(z, 1)), 0.5, fusion.training),
        "additive": AdditiveFusion.from_sequential(fusion, [D, D]),
    }
    for name, form in forms.items():
        out = mcr()(latents, None, fusion=form)
        assert out.importance[1] < 1e-9, name
        assert fusion.training
        assert fusion[2].training
        # the logits are the module's own, dropped out; with the same numbers drawn
        torch.manual_seed(5)
        logits = mcr()(latents, None, fusion=form, permutations=table_of()).logits
        torch.manual_seed(5)
        own = form if callable(form) and not isinstance(form, nn.Sequential) else None
        expected = fusion(torch.cat(latents, 1)) if own is None else own(latents)
        torch.testing.assert_close(logits, expected)


def test_own_mode_is_there_for_who_wants_it():
    torch.manual_seed(0)
    fusion = nn.Sequential(nn.Linear(2 * D, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, C))
    with torch.no_grad():
        fusion[0].weight[:, D:] = 0
    latents = make_latents(2, 2, ROWS, dtype=torch.float32)
    assert mcr(fusion_mode="own")(latents, None, fusion=fusion).importance[1] > 0.01
    noisy = lambda z: F.dropout(fusion(torch.cat(z, 1)), 0.5)  # noqa: E731
    with pytest.raises(ValueError, match="fusion draws random numbers in evaluation mode too"):
        mcr()(latents, None, fusion=noisy)
    mcr(fusion_mode="own")(latents, None, fusion=noisy)


@pytest.mark.parametrize("clean_path", ["shared", "routed"])
@pytest.mark.parametrize("place", ["fusion", "head", "projection"])
def test_batch_norm_counts_one_batch(place, clean_path):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6)
    if place == "fusion":
        seq = nn.Sequential(nn.Linear(2 * D, 6), norm, nn.ReLU(), nn.Linear(6, C)).double()
        fusion = lambda z: seq(torch.cat(z, 1))  # noqa: E731
    elif place == "head":
        seq = nn.Sequential(nn.Linear(2 * D, 6), norm, nn.ReLU(), nn.Linear(6, C)).double()
        fusion = AdditiveFusion.from_sequential(seq, [D, D])
    else:
        seq = nn.Sequential(nn.Linear(D, 6), norm, nn.ReLU(), nn.Linear(6, 5)).double()
        fusion = AdditiveFusion([seq, nn.Linear(D, 5).double()], None, nn.Linear(5, C).double())
    latents = make_latents(2, 2, ROWS)
    twin = copy.deepcopy(seq)
    twin(torch.cat(latents, 1) if place != "projection" else latents[0])
    loss = mcr(clean_path=clean_path, strategy="independent", chunk_rows=4)
    loss(latents, None, fusion=fusion, permutations=table_of()).loss.backward()
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.running_var, twin[1].running_var)
    torch.testing.assert_close(norm.running_mean, twin[1].running_mean)


@pytest.mark.parametrize("routing", ROUTINGS, ids="-".join)
def test_batch_norm_and_dropout_are_compared_in_evaluation_mode(routing):
    torch.manual_seed(0)
    layers = [nn.Linear(2 * D, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, C)]
    seq = nn.Sequential(*layers).double()
    latents = make_latents(2, 2, ROWS)
    out, ours = gradients(seq, latents, routing, list(seq.parameters()))
    steady = copy.deepcopy(seq).eval()  # its statistics are those after the one call
    wanted = gradients(steady, latents, routing, list(steady.parameters()))
    torch.testing.assert_close(out.divergences, wanted[0].divergences)
    for a, b in zip(ours, wanted[1], strict=True):
        torch.testing.assert_close(a, b)


def test_batch_norm_without_statistics_is_refused():
    norm = nn.BatchNorm1d(6, track_running_stats=False)
    seq = nn.Sequential(nn.Linear(2 * D, 6), norm, nn.Linear(6, C)).double()
    latents = make_latents(2, 2, ROWS)
    with pytest.raises(ValueError, match="BatchNorm1d without running statistics"):
        mcr()(latents, None, fusion=seq)
    mcr(fusion_mode="own")(latents, None, fusion=seq)


class Remembers(nn.Module):
    """Counts in every mode, and keeps tensors of its last call."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2 * D, C)
        self.register_buffer("mean", torch.zeros(2 * D, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.last = None

    def forward(self, z):
        x = torch.cat(z, 1)
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        self.calls.add_(1)
        self.auxiliary = self.fc(x).square().mean()
        self.last = x
        return self.fc(x - self.mean)


@pytest.mark.parametrize("mode", ["eval", "own"])
def test_a_module_remembers_the_callers_call_alone(mode):
    fusion, twin = doubles(Remembers()), doubles(Remembers())
    latents = make_latents(2, 2, ROWS)
    out = mcr(clean_path="routed", fusion_mode=mode)(latents, None, fusion=fusion)
    twin(latents)
    if mode == "own":
        assert fusion.calls > 1
        return
    assert fusion.calls == 1
    torch.testing.assert_close(fusion.mean, twin.mean)
    torch.testing.assert_close(fusion.last, twin.last)
    (out.loss + fusion.auxiliary).backward()
    twin.auxiliary.backward()
    torch.testing.assert_close(fusion.fc.weight.grad, twin.fc.weight.grad)


def test_a_weight_that_a_hook_sets_stays_that_of_the_callers_call():
    head = nn.utils.spectral_norm(nn.Linear(2 * D, C)).double()
    latents = make_latents(2, 2, ROWS)
    out = mcr()(latents, None, fusion=lambda z: head(torch.cat(z, 1)).sin())
    (out.loss + head.weight.square().sum()).backward()
    assert head.weight_orig.grad is not None


class Trainer:
    """A plain object whose method is the fusion."""

    def __init__(self):
        self.parts = {"head": nn.Sequential(nn.Dropout(0.5), nn.Linear(2 * D, C))}

    def fuse(self, z):
        return self.parts["head"](torch.cat(z, 1))


class Lit(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2 * D, C)

    def fuse(self, z):
        return self.head(F.dropout(torch.cat(z, 1), 0.5, self.training))


@pytest.mark.parametrize("make", [lambda: Trainer().fuse, lambda: Lit().fuse])
def test_the_mode_reaches_modules_through_methods(make):
    latents = make_latents(2, 2, ROWS, dtype=torch.float32)
    fuse = make()
    values = [
        mcr()(latents, None, fusion=fuse, permutations=table_of()).divergences for _ in range(2)
    ]
    torch.testing.assert_close(*values, rtol=0, atol=0)


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
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b)


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
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


class Inner:
    def __init__(self):
        self._net = nn.Sequential(nn.Linear(2 * D, 6), nn.BatchNorm1d(6), nn.Linear(6, C)).double()

    @property
    def net(self):
        return self._net

    def _fuse(self, z):
        return self.net(torch.cat(z, 1))

    def fuse(self, z):
        return self._fuse(z)

    def __call__(self, z):
        return self._fuse(z)


class Holder:
    def __init__(self):
        self.inner = Inner()
        self.hidden = {"deep": [lambda z: self.inner.fuse(z)]}


@pytest.mark.parametrize("form", ["method", "lambda", "object", "deep", "hidden"])
def test_batch_norm_is_found_wherever_it_is_held(form):
    torch.manual_seed(0)
    holder = Holder()
    forms = {
        "method": holder.inner.fuse,
        "lambda": lambda z: holder.inner.fuse(z),
        "object": holder.inner,
        "deep": lambda z: holder.inner.net(torch.cat(z, 1)),
        "hidden": lambda z: holder.hidden["deep"][0](z),
    }
    latents = make_latents(2, 2, ROWS)
    table = table_of()
    norm = holder.inner.net[1]
    out = mcr()(latents, None, fusion=forms[form], permutations=table)
    assert norm.num_batches_tracked == 1
    steady = copy.deepcopy(holder.inner.net).eval()
    wanted = mcr()(latents, None, fusion=steady, permutations=table)
    torch.testing.assert_close(out.divergences, wanted.divergences)


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
    for a, b in zip(grads, torch.autograd.grad(wanted.mipd, latents), strict=True):
        torch.testing.assert_close(a, b)


def test_random_numbers_of_others_are_not_taken_for_the_fusions():
    net = doubles(Net())

    def fusion(z):
        torch.rand(1)  # as another thread would
        return net(z)

    mcr()(make_latents(2, 2, ROWS), None, fusion=fusion)


@pytest.mark.parametrize("form", ["linear", "callable"])
def test_logits_may_be_changed_in_place_after_the_loss(form):
    net = doubles(Net() if form == "callable" else nn.Linear(2 * D, C))
    out = mcr(strategy="independent")(make_latents(2, 2, ROWS), None, fusion=net)
    out.logits.mul_(2)
    (out.loss + out.logits.sum()).backward()


def read_by_a_helper(module, x):
    return F.batch_norm(x, module.mean, module.var, training=module.training)


class Helped(nn.Module):
    """Looks at its mode through a function of another."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2 * D, C)
        self.register_buffer("mean", torch.zeros(C, dtype=torch.float64))
        self.register_buffer("var", torch.ones(C, dtype=torch.float64))

    def forward(self, z):
        return read_by_a_helper(self, self.fc(torch.cat(z, 1)))


class Asked(Helped):
    def forward(self, z):
        x = self.fc(torch.cat(z, 1))
        return F.batch_norm(x, self.mean, self.var, training=getattr(self, "training"))  # noqa: B009


class Moving(nn.Module):
    """Keeps a statistic that is no buffer."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2 * D, C)
        self.mean = torch.zeros(2 * D, dtype=torch.float64)

    def forward(self, z):
        x = torch.cat(z, 1)
        self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return self.fc(x)


@pytest.mark.parametrize("kind", [Helped, Asked])
def test_a_mode_that_is_read_in_a_roundabout_way(kind):
    fusion, latents = doubles(kind()), make_latents(2, 2, ROWS)
    out = mcr()(latents, None, fusion=fusion, permutations=table_of())
    steady = copy.deepcopy(fusion).eval()
    wanted = mcr()(latents, None, fusion=steady, permutations=table_of())
    torch.testing.assert_close(out.divergences, wanted.divergences)


def test_a_statistic_that_is_no_buffer_counts_one_call():
    fusion, twin = doubles(Moving()), doubles(Moving())
    latents = make_latents(2, 2, ROWS)
    mcr()(latents, None, fusion=fusion)
    twin(latents)
    torch.testing.assert_close(fusion.mean, twin.mean)


def test_a_linear_forward_that_was_replaced_for_all_is_called(monkeypatch):
    inner = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: inner(self, x).tanh())
    head, latents = doubles(nn.Linear(2 * D, C)), make_latents(2, 2, ROWS)
    out = mcr()(latents, None, fusion=head, permutations=table_of())
    wanted = mcr()(latents, None, fusion=lambda z: head(joined(z)), permutations=table_of())
    torch.testing.assert_close(out.divergences, wanted.divergences)
    torch.testing.assert_close(out.logits, head(joined(latents)))


class Sub(AdditiveFusion):
    """Adds nothing to the class."""


def test_a_hooked_subclass_keeps_its_projections():
    parts = [nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 5)) for _ in range(2)]
    fusion = doubles(Sub(parts, None, nn.Linear(5, C)))
    plain, latents = copy.deepcopy(fusion), make_latents(2, 2, ROWS)
    fusion.register_forward_hook(lambda module, args, out: None)
    for routing in ROUTINGS:
        results = [gradients(f, latents, routing, list(f.parameters()))[1] for f in (fusion, plain)]
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["integer", "sparse"])
def test_logits_that_are_no_dense_floats_are_refused(kind):
    net, latents = doubles(Net()), make_latents(2, 2, ROWS)
    make = {"integer": lambda x: x.long(), "sparse": lambda x: x.to_sparse()}[kind]
    with pytest.raises(TypeError, match="fusion must return dense float logits"):
        mcr()(latents, None, fusion=lambda z: make(net(z)))
