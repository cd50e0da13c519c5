"""What a divergence compares differs by the permutation alone: modes, statistics, randomness."""

import copy

import pytest
import torch
import torch.nn.functional as F
from called import ROWS, C, D, Net, doubles, mcr, table_of
from inputs import make_latents
from torch import nn

import mcr_fast
from mcr_fast import AdditiveFusion

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


def test_a_module_that_was_not_called_remembers_nothing():
    fusion, latents = doubles(Remembers()), make_latents(2, 2, ROWS)
    logits = doubles(Remembers())(latents)
    mcr()(latents, None, fusion=fusion, logits=logits)
    assert fusion.last is None
    assert not hasattr(fusion, "auxiliary")
    assert fusion.calls == 0


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


def test_random_numbers_of_others_are_not_taken_for_the_fusions():
    net = doubles(Net())

    def fusion(z):
        torch.rand(1)  # as another thread would
        return net(z)

    mcr()(make_latents(2, 2, ROWS), None, fusion=fusion)


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


class Counts(nn.Module):
    """A parametrization that remembers how often the weight was computed."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, weight):
        self.count += 1
        return weight


@pytest.mark.parametrize("options", [{}, {"backend": "reference"}, {"contrastive_weight": 0.0}])
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_computed_weight_is_computed_once_a_step(options, head, compiled):
    # spectral norm goes one step on with each
    seq = nn.Sequential(nn.Linear(2 * D, C), *([nn.Tanh()] if head else []))
    nn.utils.parametrize.register_parametrization(seq[0], "weight", Counts())
    counts = seq[0].parametrizations.weight[0]
    fusion = AdditiveFusion.from_sequential(seq, [D, D]) if head else seq[0]
    loss = mcr_fast.MCRLoss([D, D], C, num_permutations=2, **options)

    def step(latents):
        return loss(latents, None, fusion=fusion).loss

    run = torch.compile(step, backend="eager") if compiled else step
    latents = make_latents(2, 2, ROWS, dtype=torch.float32)
    counts.count = 0
    for steps in (1, 2):
        run(latents)
        assert counts.count == steps
