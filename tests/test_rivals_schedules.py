"""Rivals that change when what is trained: D&R, ReconBoost, MLA, Data Remixing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rivals_steps import close
from rivals_toy import FUSED, LABELS, OWN, random_batch, tensor, toy_batch, toy_model, trained_model
from torch import nn

from examples.competition.model import Batch, MultimodalModel
from examples.competition.rivals.mla import MLA, gates, next_projection
from examples.competition.rivals.reconboost import ReconBoost, agreement_loss, boosting_losses
from examples.competition.rivals.relearning import Relearning, amounts, purity, separability
from examples.competition.rivals.remix import Remix, certainties, least_certain
from examples.competition.strategy import Strategy

pytestmark = pytest.mark.usefixtures("one_thread")


def three(seed: int = 0) -> tuple[MultimodalModel, Batch]:
    """Three modalities, inputs of width 4, latents of width 3, labels that the first one tells."""
    torch.manual_seed(seed)
    model = MultimodalModel([nn.Linear(4, 3) for _ in range(3)], (3, 3, 3), 3)
    inputs = tuple(torch.randn(24, 4) for _ in range(3))
    return model, Batch(inputs, inputs[0][:, :3].argmax(1))


def sgd(strategy: Strategy) -> torch.optim.Optimizer:
    return torch.optim.SGD(strategy.parameter_groups(0.1), lr=0.1)


def state(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(module: nn.Module, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


# D&R


def test_relearning_in_numbers():
    close(amounts(tensor(0.30, 0.05), 3.0), 0.716297870, 0.148885034)
    close(amounts(tensor(-0.30), 3.0), 0.716297870)
    labels, clusters = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 0, 1, 1, 1])
    assert purity(labels, clusters) == pytest.approx(2 / 3, abs=1e-8)
    assert purity(labels, labels[::-1]) == 1


def test_separability_is_of_scaled_features():
    """Nine small features tell the classes, one large one has its own two clusters."""
    labels = torch.arange(60) % 3
    told = (labels + torch.linspace(0, 0.1, 60))[:, None].repeat(1, 9)
    other = 1e3 * (torch.arange(60)[:, None] // 3 % 2)
    assert separability(told, labels, 3) == 1
    assert separability(torch.cat((told, other), 1), labels, 3) == 1
    assert separability(told[:2], labels[:2], 3) == 1  # fewer rows than classes


def test_relearning_mixes_encoders_with_their_first_weights_and_nothing_else():
    model, batch = three()
    model.encoders[0].register_buffer("seen", torch.zeros(1))
    relearning = Relearning(model, every=2, times=1, strength=3.0)
    first = [state(encoder) for encoder in model.encoders]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
        model.encoders[0].seen.fill_(7)
    now = [state(encoder) for encoder in model.encoders]
    fusion, heads = state(model.fusion), state(model.heads)
    validation = batch.rows(torch.arange(9))
    for epoch in range(3):
        relearning.epoch_start(epoch, batch)
        relearning.epoch_end(epoch, batch, validation)
    found = amounts(relearning.gaps(batch, validation), 3.0)
    assert relearning.training
    assert (found > 0).any()
    assert all(same(e, before) for e, before in zip(model.encoders, now, strict=True))
    relearning.epoch_start(3, batch)
    for encoder, start, before, amount in zip(model.encoders, first, now, found, strict=True):
        for p, w0, w in zip(encoder.parameters(), start, before, strict=True):
            torch.testing.assert_close(p, amount * w0 + (1 - amount) * w)
    assert same(model.fusion, fusion)
    assert same(model.heads, heads)
    assert model.encoders[0].seen == 7
    relearning.epoch_end(4, batch, validation)
    assert relearning._amounts is None  # it was once, which is `times`


# ReconBoost


def test_reconboost_in_numbers():
    rows = boosting_losses(OWN[0], FUSED, LABELS, 5.0, 1.0)
    close(rows, 0.331707407, 0.820485958, 1.058613222)
    close(rows.mean(), 0.736935529)
    own, other = OWN
    by_hand = (own.softmax(1) - other.softmax(1)).square().mean()
    torch.testing.assert_close(agreement_loss(own, other), by_hand)
    own, other = own.clone().requires_grad_(), other.clone().requires_grad_()
    loss = boosting_losses(own, other, LABELS, 5.0, 1.0).sum() + agreement_loss(own, other)
    given = torch.autograd.grad(loss, [own, other], allow_unused=True)
    assert [g is not None for g in given] == [True, False]


def test_reconboost_takes_turns():
    """Which parts have gradients, and what is predicted with, over three stages and a return."""
    model, batch = three()
    boost = ReconBoost(model, stage_epochs=2, correction_epochs=1)
    latents = model.encode(batch.inputs)
    turns = [{0}, {0}, {0}, {1}, {1}, {0, 1}, {2}, {2}, {0, 1, 2}, {0}, {0}, {0, 1, 2}]
    for epoch, expected in enumerate(turns):
        boost.epoch_start(epoch, batch)
        model.zero_grad()
        boost.loss(batch).backward()
        trained = {m for m, e in enumerate(model.encoders) if e.weight.grad is not None}
        assert trained == expected
        assert trained == {m for m, e in enumerate(model.heads) if e.weight.grad is not None}
        members = min(epoch // 3 + 1, 3)
        logits = torch.stack(model.own(latents)[:members]).sum(0)
        torch.testing.assert_close(boost.predict_latents(latents), logits.softmax(1))
        if epoch % 3 == 2:
            torch.testing.assert_close(boost.loss(batch), F.cross_entropy(logits, batch.labels))
    assert model.fusion.weight.grad is None
    assert "members" in boost.state_dict()


@pytest.mark.parametrize("agreement", [0.0, 0.5])
def test_a_stage_of_reconboost_by_hand(agreement):
    """Stage 1: the others are modality 0; stage 0: none, q = 1/C."""
    model, batch = three()
    boost = ReconBoost(model, agreement=agreement)
    own = model.own(model.encode(batch.inputs))
    rows = torch.arange(24)
    for stage, q in ((0, torch.full((24,), 1 / 3)), (1, own[0].softmax(1)[rows, batch.labels])):
        boost.epoch_start(2 * stage, batch)
        log_p = own[stage].log_softmax(1)[rows, batch.labels]
        by_hand = (-5 * log_p + q.detach() * log_p).mean() / 3
        if stage == 1:
            gap = own[1].softmax(1) - own[0].detach().softmax(1)
            by_hand = by_hand + agreement * gap.square().mean()
        weight = model.encoders[stage].weight
        found = boost.loss(batch)
        torch.testing.assert_close(found, by_hand)
        torch.testing.assert_close(
            torch.autograd.grad(found, weight), torch.autograd.grad(by_hand, weight)
        )


# MLA


def test_mla_in_numbers():
    projection = next_projection(torch.eye(2).double(), tensor(1, 2), 0.1)
    close(projection, 0.803767072, -0.392081499, -0.392081499, 0.215644824)
    gradient = tensor(1, 1, 0, 2, -1, 0).reshape(3, 2) @ projection.T
    first, second = (0.411685574, -0.176436674), (-0.784162997, 0.431289649)
    close(gradient, *first, *second, -0.803767072, 0.392081499)
    weights = gates(OWN)
    close(weights[0], 0.601468602, 0.528145813, 0.488786004)
    close(weights.sum(0), 1, 1, 1)
    mla = MLA(toy_model())
    close((weights[:, 0, None] * torch.stack(OWN)[:, 0]).sum(0), 1.402202903, 0.079706280, 0)
    mixed = (weights[:, :, None] * torch.stack(OWN)).sum(0)
    torch.testing.assert_close(mla.predict(toy_batch().inputs), mixed.softmax(1))


def test_one_gate_of_mla_for_the_batch():
    weights = gates(OWN, rows=False)
    assert torch.equal(weights, weights[:, :1].expand(2, 3))
    close(weights[0, 0], 0.617612545)
    assert (MLA(toy_model(), row_gates=False).predict(OWN) != MLA(toy_model()).predict(OWN)).any()


@pytest.mark.parametrize("project", [False, True])
def test_a_step_of_mla_is_a_step_of_each_modality(project):
    """Against updates by hand, batch 2 of 3 in its epoch; the first update has no projection."""
    model, batch = three()
    mla = MLA(model, project=project)
    encoders = [state(e) for e in model.encoders]
    weight, bias = (p.detach().clone().requires_grad_() for p in model.heads[0].parameters())
    heads, fusion = state(model.heads[1:]), state(model.fusion)
    optimizer, projection = sgd(mla), torch.eye(3)
    for index, rows in enumerate(mla.batches(batch, 8, torch.Generator().manual_seed(0))):
        mla.step(rows, optimizer)
        for m, (w, b) in enumerate(encoders):
            own = [p.requires_grad_() for p in (w, b)]
            z = rows.inputs[m] @ w.T + b
            loss = F.cross_entropy(z @ weight.T + bias, rows.labels)
            grads = list(torch.autograd.grad(loss, [*own, weight, bias]))
            if project and (index, m) != (0, 0):
                r, alpha = z.detach().mean(0), 0.1 ** (index / 3 + 1)
                k = projection @ r
                projection = projection - k[:, None] * k[None] / (alpha + r @ k)
                projection = projection / projection.square().sum().sqrt()
                grads[2] = grads[2] @ projection.T
            with torch.no_grad():
                for p, grad in zip([*own, weight, bias], grads, strict=True):
                    p -= 0.1 * grad
    for encoder, by_hand in zip(model.encoders, encoders, strict=True):
        torch.testing.assert_close(list(encoder.parameters()), by_hand)
    torch.testing.assert_close(list(model.heads[0].parameters()), [weight, bias])
    assert same(model.heads[1:], heads)
    assert same(model.fusion, fusion)


def test_mla_needs_latents_of_one_width():
    model = MultimodalModel([nn.Linear(4, 3), nn.Linear(4, 2)], (3, 2), 3)
    with pytest.raises(ValueError, match=r"one width, not \(3, 2\)"):
        MLA(model)


# Data Remixing


def test_remix_in_numbers():
    found = torch.stack([certainties(o) for o in OWN])
    close(found[0], 0.624744093, 0.177861878, 0.113137518)
    close(found[1], 0.030948056, 0.015266691, 0.177861878)
    assert least_certain(found).tolist() == [1, 1, 0]
    assert least_certain(torch.zeros(3, 2)).tolist() == [2, 2]  # ties: the last
    assert Remix(toy_model()).assign(toy_batch()).tolist() == [1, 1, 0]
    sure = certainties(tensor(1e3, 0, 0)[None])  # probabilities of 0
    torch.testing.assert_close(sure, tensor(3).log2(), rtol=0, atol=1e-6)


def test_remix_shares_out_in_eval_mode():
    """With dropout two assignments of one model would differ."""
    model, batch = three()
    model.encoders = nn.ModuleList([nn.Sequential(e, nn.Dropout(0.5)) for e in model.encoders])
    remix = Remix(model).train()
    assert torch.equal(remix.assign(batch), remix.assign(batch))
    assert model.encoders[0][1].training


def test_remix_warms_up_as_multi_loss():
    model, batch = trained_model(), random_batch()
    remix = Remix(model, warmup=2)
    remix.epoch_start(1, batch)
    assert [len(rows) for rows in remix.batches(batch, 4, torch.Generator())] == [4, 4, 4]
    latents = model.encode(batch.inputs)
    own = [F.cross_entropy(o, batch.labels) for o in model.own(latents)]
    by_hand = F.cross_entropy(model.fuse(latents), batch.labels) + 0.5 * (own[0] + own[1])
    torch.testing.assert_close(remix.loss(batch), by_hand)


@pytest.mark.parametrize("order", [None, (2, 0, 1)])
def test_an_epoch_of_remix_has_every_row_once_for_one_modality(order):
    model, batch = three(3)
    remix = Remix(model, warmup=0, order=order)
    remix.epoch_start(0, batch)
    assert remix.training
    assignment = remix.assign(batch)
    modalities, seen = [], []
    for rows in remix.batches(batch, 4, torch.Generator().manual_seed(0)):
        index = (rows.inputs[0][:, None] == batch.inputs[0]).all(2).nonzero()[:, 1]
        m = remix._kept
        assert (assignment[index] == m).all()
        assert 2 <= len(rows) <= 4
        seen += index.tolist()
        modalities.append(m)
        latents = [z if j == m else 0 * z for j, z in enumerate(model.encode(rows.inputs))]
        by_hand = F.cross_entropy(model.fuse(latents), rows.labels)
        by_hand = by_hand + F.cross_entropy(model.own(latents)[m], rows.labels)
        model.zero_grad()
        loss = remix.loss(rows)
        loss.backward()
        torch.testing.assert_close(loss, by_hand)
        trained = [j for j, e in enumerate(model.encoders) if e.weight.grad is not None]
        assert trained == [m]
        torch.testing.assert_close(
            model.encoders[m].weight.grad, torch.autograd.grad(by_hand, model.encoders[m].weight)[0]
        )
    assert sorted(seen) == list(range(24))
    blocks = [m for i, m in enumerate(modalities) if i == 0 or modalities[i - 1] != m]
    assert (blocks == list(order)) if order else len(blocks) > 3


def test_remix_without_rows_for_a_modality_or_with_a_single_one():
    model, batch = three()
    remix = Remix(model, warmup=0)
    remix._assignment = torch.tensor([1] + [2] * 23)
    rows = [(remix._kept, len(b)) for b in remix.batches(batch, 8, torch.Generator())]
    assert sorted(rows) == [(2, 7), (2, 8), (2, 8)]
