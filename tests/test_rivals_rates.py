"""MSLR and MILES, which set learning rates between epochs, and MMPareto, which mixes gradients."""

import copy
import statistics

import pytest
import torch
import torch.nn.functional as F
from rivals_steps import (
    assert_gradients,
    batch_of,
    by_autograd,
    close,
    gradients_of_step,
    joint,
    model_of,
    multi_loss,
    steps,
)
from rivals_toy import OWN, tensor, toy_batch, toy_model

from examples.competition.model import Batch
from examples.competition.rivals.miles import MILES, slowed, utilisation
from examples.competition.rivals.mmpareto import MMPareto, combine, weight_of_fused
from examples.competition.rivals.mslr import MSLR, ratio

SGD, ADAM = torch.optim.SGD, torch.optim.Adam


def test_mslr():
    found = ratio(0.7, (0.5, 0.6), 2)
    close(tensor(found, 1.3 * found), 1.272727273, 1.654545455)
    assert ratio(0.7, (0.5, 0.6), 3) == 1  # too few
    assert ratio(0.7, (0.0, 0.0), 2) == 1
    close(tensor(ratio(0.7, (9.0, 0.5, 0.6), 2)), 1.272727273)


@pytest.mark.parametrize("modalities", [2, 3])
def test_mslr_remembers_20_epochs(modalities):
    model = model_of(modalities)
    rates = [0.7, 1.3, 1.0][:modalities]
    strategy = MSLR(model, rates)
    train, generator = batch_of(modalities), torch.Generator().manual_seed(0)
    accuracies = [[] for _ in rates]
    for epoch in range(24):
        labels = torch.randint(3, (60,), generator=generator)
        validation = Batch(batch_of(modalities, 60).inputs, labels)
        strategy.epoch_end(epoch, train, validation)
        with torch.no_grad():
            slices = model.slices(model.encode(validation.inputs))
        for m, logits in enumerate(slices):
            right = (logits.argmax(1) == labels).double().mean().item()
            accuracies[m].append(right)
            mean = statistics.mean(accuracies[m][-21:-1]) if epoch >= 20 else right
            assert strategy.factors[m] == pytest.approx(rates[m] * right / mean)
    assert strategy.training
    strategy.step(train, SGD(strategy.parameter_groups(0.1), lr=0.1))
    assert strategy.lr_scale == strategy.factors != rates


def test_mslr_keep_and_smooth():
    batch = batch_of(2)
    strategy = MSLR(model_of(2), [0.6, 1.4], memory=1, dynamic=False, smooth=0.25)
    for epoch in range(3):
        strategy.epoch_end(epoch, batch, batch)
    assert strategy.factors == pytest.approx([0.7, 1.3])
    assert MSLR(model_of(3)).factors == [1.0] * 3
    with pytest.raises(ValueError, match="2 rates for 3 modalities"):
        MSLR(model_of(3), [0.7, 1.3])


@pytest.mark.parametrize("as_lr", [True, False])
def test_mslr_steps_of_sgd(as_lr):
    batch, model, factors = batch_of(2), model_of(2), {"0": 0.7, "1": 1.3}
    names, values = zip(*model.named_parameters(), strict=True)
    gradients = by_autograd(joint(model, batch), values)
    found = steps(MSLR(model_of(2), [0.7, 1.3], as_lr=as_lr), batch, SGD)
    for name, before, grad in zip(names, values, gradients, strict=True):
        factor = factors[name.split(".")[1]] if name.startswith("encoders") else 1.0
        torch.testing.assert_close(found[name], before - 0.1 * factor * grad)


def test_adam_cancels_a_factor_on_gradients():
    batch = batch_of(2)
    plain = steps(MSLR(model_of(2)), batch, ADAM, 3)
    for as_lr in (True, False):
        found = steps(MSLR(model_of(2), [0.2, 1.8], as_lr=as_lr), batch, ADAM, 3)
        same = torch.allclose(found["encoders.0.weight"], plain["encoders.0.weight"], atol=1e-4)
        assert same != as_lr


def test_miles():
    found = utilisation(0.8, [0.7, 0.4])
    close(tensor(*found, found[0] - found[1]), 0.5, 0.125, 0.375)
    assert slowed(found, 0.2) == [True, False]
    assert slowed(found, 0.4) == [False, False]
    assert slowed([-0.1, -0.5], 0.2) == [False, False]  # each is better alone
    assert slowed([0.0, -0.5], 0.2) == [True, False]
    assert utilisation(0.0, [0.5, 0.1]) == [0, 0]


def test_miles_with_three_modalities_compares_with_the_least_used_one():
    found = utilisation(0.8, [0.7, 0.6, 0.2])
    close(tensor(*found), 0.25, 0.125, 0.125)
    assert slowed(found, 0.1) == [True, False, False]
    assert slowed([0.5, 0.4, 0.1], 0.2) == [True, True, False]
    assert slowed([0.1, -0.2, -0.3], 0.25) == [True, False, False]
    assert slowed([-0.1, -0.6, -0.9], 0.2) == [False, False, False]


@pytest.mark.parametrize("rows", ["validation", "train"])
def test_miles_sets_the_rates_of_the_next_epoch(rows):
    """Accuracies of the toy: fused 2/3, alone 1 and 1/3."""
    unbalanced, other = toy_batch(), Batch((OWN[0], OWN[0]), toy_batch().labels)
    strategy = MILES(toy_model(), factor=0.25, rows=rows)
    ends = (unbalanced, other) if rows == "train" else (other, unbalanced)
    for epoch in (0, 1):  # not cumulative
        strategy.epoch_end(epoch, *ends)
        assert strategy.lr_scale == [0.25, 1.0]
    strategy.epoch_end(2, *reversed(ends))
    assert strategy.lr_scale == [1.0, 1.0]


@pytest.mark.parametrize("modalities", [2, 3])
def test_miles_slows_encoders_only(modalities):
    batch, model = batch_of(modalities), model_of(modalities)
    strategy = MILES(model_of(modalities), weight=0.4)
    strategy.lr_scale[1] = 0.5
    names, values = zip(*model.named_parameters(), strict=True)
    gradients = by_autograd(multi_loss(model, batch, 0.4), values)
    found = steps(strategy, batch, SGD)
    for name, before, grad in zip(names, values, gradients, strict=True):
        factor = 0.5 if name.startswith("encoders.1") else 1.0
        torch.testing.assert_close(found[name], before - 0.1 * factor * grad)


def test_mmpareto():
    fused, own = tensor(1, 0), tensor(-1, 1)
    weight = weight_of_fused(fused, own)
    close(weight[None], 0.6)
    close(2 * weight * fused + 2 * (1 - weight) * own, 0.4, 0.8)
    close(1.5 * combine(fused, own, weight), 0.670820393, 1.341640786)
    own = tensor(1, 1)
    close(1.5 * combine(fused, own, weight_of_fused(fused, own)), 3, 1.5)


def test_mmpareto_of_gradients_that_cancel_or_vanish():
    zero, one = tensor(0, 0), tensor(1, 0)
    for fused, own, weight in ((one, -one, 0.5), (zero, one, 0.999), (one, zero, 0.001)):
        found = weight_of_fused(fused, own)
        close(found[None], weight)
        assert torch.isfinite(combine(fused, own, found)).all()
    close(weight_of_fused(one, -1e-6 * one)[None], 0.001)
    assert not combine(zero, zero, weight_of_fused(zero, zero)).any()
    assert not combine(one, -one, tensor(0.5)[0]).any()
    assert not combine(one, -3 * one, tensor(0.75)[0]).any()  # shorter than the sum, yet 0


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("against", [False, True])
@pytest.mark.parametrize("modalities", [2, 3])
def test_mmpareto_mixes_the_gradients_of_encoders_only(modalities, against, weight):
    """The first head says the same as the fusion, or `against` it, the opposite."""
    model, batch = model_of(modalities), batch_of(modalities)
    with torch.no_grad():
        of_fusion = model.fusion.weight[:, : model.widths[0]]
        model.heads[0].weight.copy_((-4 if against else 4) * of_fusion)
    latents = model.encode(batch.inputs)
    task = F.cross_entropy(model.fuse(latents), batch.labels)
    expected = []
    for m, encoder in enumerate(model.encoders):
        parameters = list(encoder.parameters())
        own = weight * F.cross_entropy(model.heads[m](latents[m]), batch.labels)
        first, second = by_autograd(task, parameters), by_autograd(own, parameters)
        v = torch.cat([x.flatten() for x in first])
        u = torch.cat([x.flatten() for x in second])
        k = 0.5
        if F.cosine_similarity(v, u, dim=0) <= 0:
            k = min(max(float((u @ (u - v)) / ((v - u) @ (v - u))), 0.001), 0.999)
        for x, y in zip(first, second, strict=True):
            g = 2 * k * x + 2 * (1 - k) * y
            expected.append(1.5 * g * max(1.0, float((x + y).norm() / g.norm())))
        if m == 0:
            assert (k != 0.5) == against
    others = [*model.fusion.parameters(), *model.heads.parameters()]
    plain = by_autograd(multi_loss(model, batch, weight), others)
    strategy = MMPareto(model, weight=weight)
    gradients_of_step(strategy, batch)
    assert_gradients(model.encoders.parameters(), expected)
    assert_gradients(others, plain)
    copy.deepcopy(strategy)  # holds no graph


def test_mmpareto_leaves_frozen_parameters_alone():
    model, batch = model_of(2), batch_of(2)
    model.encoders[0].requires_grad_(False)
    model.encoders[1].bias.requires_grad_(False)
    gradients_of_step(MMPareto(model), batch)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert len(frozen) == 3
    assert all(p.grad is None for p in frozen)
    assert model.encoders[1].weight.grad.any()


def test_mmpareto_gamma_as_a_learning_rate():
    """The same step under SGD; under Adam it counts only as a rate."""
    batch = batch_of(2)

    def encoder(optimizer, **options):
        return steps(MMPareto(model_of(2), **options), batch, optimizer, 3)["encoders.0.weight"]

    torch.testing.assert_close(encoder(SGD, gamma=3.0, as_lr=True), encoder(SGD, gamma=3.0))
    plain = encoder(ADAM, gamma=1.0)
    torch.testing.assert_close(encoder(ADAM, gamma=3.0), plain, rtol=0, atol=1e-4)
    assert not torch.allclose(encoder(ADAM, gamma=3.0, as_lr=True), plain, atol=0.1)
    others = [
        steps(MMPareto(model_of(2), gamma=g, as_lr=True), batch, ADAM)["fusion.weight"]
        for g in (0.5, 3.0)
    ]
    assert torch.equal(*others)
