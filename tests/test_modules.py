"""MCRLoss as a training loop meets it: terms, options, empty batches, copies."""

import copy
import pickle

import pytest
import torch
from inputs import make_latents, make_present
from regularizer import LABELS, WAYS, C, D, N, mcr, setting
from torch import nn

import mcr_fast
from mcr_fast import functional as F
from mcr_fast.mipd.clean import call_fusion

# The terms


def test_loss_is_the_weighted_sum_of_the_terms():
    fusion, latents = setting()
    loss = mcr(mipd_weight=0.3, contrastive_weight=0.7, ceb_weight=2.0, temperature=0.2).double()
    out = loss(latents, LABELS, fusion=fusion)
    torch.testing.assert_close(out.loss, 0.3 * out.mipd + 0.7 * out.contrastive + 2.0 * out.ceb)
    torch.testing.assert_close(out.mipd, -out.divergences.sum())
    torch.testing.assert_close(out.contrastive, F.nt_xent(latents, LABELS, temperature=0.2))
    target = loss.ceb_head(out.logits.detach())
    torch.testing.assert_close(out.ceb, ((target - torch.cat(latents, 1)) ** 2).mean())
    torch.testing.assert_close(out.logits, fusion(torch.cat(latents, 1)))
    assert out.divergences.shape == (2,)
    assert not out.divergences.requires_grad
    assert not out.importance.requires_grad
    torch.testing.assert_close(out.importance, out.divergences / out.divergences.sum())


def test_importance_is_of_single_modalities():
    fusion, latents = setting(num_modalities=3)
    out = mcr(3, num_permutations="all")(latents, LABELS, fusion=fusion)
    assert out.divergences.shape == (6,)
    torch.testing.assert_close(out.importance, out.divergences[:3] / out.divergences[:3].sum())
    alone = [z[:1] for z in latents]
    out = mcr(3, contrastive_weight=0.0)(alone, LABELS[:1], fusion=fusion)
    torch.testing.assert_close(out.importance, torch.full((3,), 1 / 3, dtype=torch.float64))


@pytest.mark.parametrize("off", ["mipd", "contrastive", "ceb"])
def test_a_term_of_weight_0_is_not_computed(off, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    if off == "mipd":
        monkeypatch.setattr("mcr_fast._terms.evaluate_mipd", refuse)
        monkeypatch.setattr("mcr_fast._terms.draw_donors", refuse)
    if off == "contrastive":
        monkeypatch.setattr("mcr_fast._terms.contrastive_loss", refuse)
    if off == "ceb":
        monkeypatch.setattr(F, "reconstruction_loss", refuse)
    fusion, latents = setting()
    weights = {"mipd_weight": 1.0, "contrastive_weight": 1.0, "ceb_weight": 1.0} | {
        f"{off}_weight": 0.0
    }
    out = mcr(**weights).double()(latents, LABELS, fusion=fusion)
    assert getattr(out, off) == 0
    torch.testing.assert_close(out.logits, fusion(torch.cat(latents, 1)))
    out.loss.backward()
    assert (list(mcr(**weights).parameters()) == []) == (off == "ceb")


def test_no_term_at_all():
    fusion, latents = setting("gated")
    out = mcr(mipd_weight=0.0, contrastive_weight=0.0)(latents, None, fusion=fusion)
    assert out.loss == 0
    torch.testing.assert_close(out.logits, fusion(latents))
    torch.testing.assert_close(out.importance, torch.full((2,), 0.5, dtype=torch.float64))


def test_missing_modalities_reach_no_term():
    fusion, latents = setting()
    present = make_present(4, N, 2)
    present[2] = False
    loss = mcr(ceb_weight=1.0, num_permutations="all").double()
    out = loss(latents, LABELS, fusion=fusion, present=present)
    # a row that misses everything: its contents do not matter
    other = [z.detach().clone() for z in latents]
    for z in other:
        z[2] = 7.0
    again = loss(other, LABELS, fusion=fusion, present=present)
    for name in ("loss", "mipd", "contrastive", "ceb"):
        torch.testing.assert_close(getattr(out, name), getattr(again, name))


@pytest.mark.parametrize("kind", WAYS)
def test_given_logits_are_returned(kind):
    fusion, latents = setting(kind)
    logits = call_fusion(fusion, latents, C)
    out = mcr()(latents, LABELS, fusion=fusion, logits=logits)
    assert out.logits is logits
    torch.manual_seed(0)
    torch.testing.assert_close(mcr()(latents, LABELS, fusion=fusion).mipd, out.mipd)


# How donors are drawn


@pytest.mark.parametrize(
    ("options", "num_modalities", "num_rows", "expected"),
    [
        ({"num_permutations": 3}, 2, 9, ("cyclic", (1, 3))),
        ({"num_permutations": 8}, 2, 9, "exhaustive"),
        ({"num_permutations": 100}, 2, 9, "exhaustive"),
        ({"num_permutations": "all"}, 3, 9, "exhaustive"),
        ({"num_permutations": 3}, 3, 9, ("cyclic", (3, 3))),
        ({"num_permutations": 100}, 3, 9, ("cyclic", (3, 8))),
        ({"num_permutations": 100, "shared_donor": True}, 3, 9, "exhaustive"),
        ({"num_permutations": 3, "shared_donor": True}, 3, 9, ("cyclic", (1, 3))),
        ({"num_permutations": 3, "subsets": "single"}, 3, 9, ("cyclic", (1, 3))),
        ({"num_permutations": 3}, 3, 3, "exhaustive"),
        ({"num_permutations": 20, "scheme": "uniform"}, 2, 9, ("table", (1, 20, 9))),
        ({"num_permutations": 20, "scheme": "uniform"}, 3, 9, ("table", (3, 20, 9))),
        ({"num_permutations": 5, "perturbation": "zero"}, 2, 9, ("table", (1, 1, 9))),
        ({"num_permutations": 5, "perturbation": "noise"}, 2, 9, ("table", (1, 5, 9))),
    ],
)
def test_draws(options, num_modalities, num_rows, expected, monkeypatch):
    drawn = []
    draw_donors = mcr_fast._terms.draw_donors

    def spy(*args):
        drawn.append(draw_donors(*args))
        return drawn[-1]

    monkeypatch.setattr("mcr_fast._terms.draw_donors", spy)
    fusion, latents = setting(num_modalities=num_modalities, num_rows=num_rows)
    mcr(num_modalities, contrastive_weight=0.0, **options)(latents, None, fusion=fusion)
    order, donors = drawn[0]
    if expected == "exhaustive":
        assert order is None
        assert donors is None
    else:
        assert (order is not None) == (expected[0] == "cyclic")
        assert tuple(donors.shape) == expected[1]


def test_generator_decides():
    fusion, latents = setting()
    for options in ({}, {"scheme": "uniform"}, {"perturbation": "noise"}):
        loss = mcr(num_permutations=2, contrastive_weight=0.0, **options)
        values = [
            loss(latents, None, fusion=fusion, generator=torch.Generator().manual_seed(seed)).loss
            for seed in (1, 1, 2)
        ]
        assert values[0] == values[1] != values[2]


# Edges of the input


@pytest.mark.parametrize("perturbation", ["permute", "zero", "noise"])
@pytest.mark.parametrize("scheme", ["cyclic", "uniform"])
@pytest.mark.parametrize("num_modalities", [2, 3])
@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("num_rows", [0, 1])
def test_batches_without_a_pair(num_rows, kind, num_modalities, scheme, perturbation):
    fusion, latents = setting(kind, num_modalities, num_rows)
    loss = mcr(num_modalities, contrastive_weight=0.0, scheme=scheme, perturbation=perturbation)
    out = loss(latents, LABELS[:num_rows], fusion=fusion)
    assert out.loss == out.mipd == 0
    assert (out.divergences == 0).all()
    assert out.logits.shape == (num_rows, C)
    out.loss.backward()
    for z in latents:
        assert (z.grad == 0).all()
    for p in fusion.parameters():
        assert p.grad is None or (p.grad == 0).all()


@pytest.mark.parametrize("num_rows", [0, 1])
def test_the_other_terms_of_batches_without_a_pair(num_rows):
    fusion, latents = setting(num_rows=num_rows)
    loss = mcr(ceb_weight=1.0).double()
    out = loss(latents, torch.arange(num_rows), fusion=fusion)
    assert out.contrastive == 0
    assert out.loss.isfinite()
    out.loss.backward()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", WAYS)
def test_nan_and_inf_give_nan(kind, bad):
    fusion, latents = setting(kind)
    with torch.no_grad():
        latents[0][1, 2] = bad
    # tanh saturates at infinity, so the hidden row is what is made infinite there
    head = kind == "additive_head"
    if head and bad == bad:
        fusion = mcr_fast.AdditiveFusion(fusion.projections, fusion.bias, fusion.head[1])
        fusion.projections = nn.ModuleList(nn.Linear(D, 5).double() for _ in range(2))
    loss = mcr(ceb_weight=1.0).double()
    out = loss(latents, LABELS, fusion=fusion)
    for value in (out.loss, out.mipd, out.contrastive):
        assert value.isnan()
    assert not out.ceb.isfinite()


@pytest.mark.parametrize("kind", WAYS)
def test_huge_logits(kind):
    fusion, latents = setting(kind)
    with torch.no_grad():
        for p in fusion.parameters():
            p.mul_(1e3)
    out = mcr(num_permutations="all")(latents, LABELS, fusion=fusion)
    out.loss.backward()
    assert out.loss.isfinite()
    assert all(z.grad.isfinite().all() for z in latents)


# The module


def test_state_copy_pickle():
    fusion, latents = setting()
    assert mcr().state_dict() == {}
    loss = mcr(ceb_weight=1.0, num_permutations="all").double()
    assert set(loss.state_dict()) == {"ceb_head.0.weight", "ceb_head.2.weight"}
    expected = loss(latents, LABELS, fusion=fusion).loss
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other(latents, LABELS, fusion=fusion).loss == expected
    fresh = mcr(ceb_weight=1.0, num_permutations="all").double()
    fresh.load_state_dict(loss.state_dict())
    assert fresh(latents, LABELS, fusion=fusion).loss == expected
    assert "strategy='greedy'" in repr(loss)


def test_contrastive_modules():
    latents = make_latents(1, 2, N, D)
    present = make_present(1, N, 2)
    for module, function in (
        (mcr_fast.NTXentLoss(0.3), F.nt_xent),
        (mcr_fast.SupConLoss(0.3), F.sup_con),
    ):
        expected = function(latents, LABELS, temperature=0.3, present=present)
        assert module(latents, LABELS, present=present) == expected
        assert "temperature=0.3" in repr(pickle.loads(pickle.dumps(module)))
    assert mcr_fast.NTXentLoss().temperature == 0.5
    assert mcr_fast.SupConLoss().temperature == 0.1


# The task's own second derivatives


@pytest.mark.parametrize("kind", WAYS)
def test_a_penalty_on_the_task_loss_through_the_logits(kind):
    """Only the regularizer's own part refuses a second derivative."""
    fusion, latents = setting(kind)
    tensors = [*latents, *fusion.parameters()]

    def penalty(logits):
        task = torch.nn.functional.cross_entropy(logits, LABELS)
        grads = torch.autograd.grad(task, latents, create_graph=True)
        return sum(g.square().sum() for g in grads)

    inputs = torch.cat(latents, 1) if kind == "linear" else latents
    wanted = torch.autograd.grad(penalty(fusion(inputs)), tensors, allow_unused=True)
    out = mcr(num_permutations="all")(latents, LABELS, fusion=fusion)
    ours = torch.autograd.grad(penalty(out.logits), tensors, retain_graph=True, allow_unused=True)
    for a, b in zip(ours, wanted, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b)
    task = torch.nn.functional.cross_entropy(out.logits, LABELS)
    together = torch.autograd.grad(task + out.loss, latents, create_graph=True)
    first = torch.autograd.grad(task, latents, retain_graph=True)
    second = torch.autograd.grad(out.loss, latents, retain_graph=True)
    for a, b, c in zip(together, first, second, strict=True):
        torch.testing.assert_close(a, b + c)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        sum(g.square().sum() for g in together).backward()


@pytest.mark.parametrize("kind", ["linear", "additive_head", "gated"])
def test_infinite_logits_are_named_when_asked(kind, monkeypatch):
    fusion, latents = setting(kind)
    mask = torch.zeros(C, dtype=torch.float64)
    mask[1] = -float("inf")

    def masked(z):
        return fusion(torch.cat(z, 1) if kind == "linear" else z) + mask

    assert mcr()(latents, LABELS, fusion=masked).divergences.isnan().all()
    monkeypatch.setenv("MCR_FAST_CHECK", "1")
    with pytest.raises(ValueError, match="what the fusion gives holds infinite logits"):
        mcr()(latents, LABELS, fusion=masked)
