"""The interface of examples/competition, and joint, multi-loss, ensemble, OGM and MCR on it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from rivals_steps import close
from rivals_toy import LABELS, OWN, random_batch, toy_batch, toy_model, trained_model

import mcr_fast
from examples.competition.model import Batch
from examples.competition.rivals import STRATEGIES, find
from examples.competition.rivals.joint import Joint
from examples.competition.rivals.mcr import MCR
from examples.competition.rivals.multi_loss import MultiLoss
from examples.competition.rivals.ogm import OGM, coefficients
from examples.competition.rivals.unimodal import Unimodal
from examples.competition.strategy import true_class_scores
from examples.competition.trainer import Schedule, evaluate, evaluate_without, train


def test_joint_and_multi_loss():
    model, batch = toy_model(), toy_batch()
    close(Joint(model).loss(batch)[None], 0.631534464)
    close(MultiLoss(model, 0.5).loss(batch)[None], 1.479019234)
    task, own = MultiLoss(model).losses(model.encode(batch.inputs), LABELS)
    close(torch.stack([task, *own]), 0.631534464, 0.490419717, 1.204549822)


def test_ensemble():
    unimodal, batch = Unimodal(toy_model()), toy_batch()
    probabilities = unimodal.predict(batch.inputs)
    close(probabilities[2], 0.441656385, 0.199132640, 0.359210974)
    assert probabilities.argmax(1).tolist() == [0, 1, 0]
    close(unimodal.loss(batch)[None], 0.490419717 + 1.204549822)


def test_ensemble_of_logits():
    probabilities = Unimodal(toy_model(), average="logits").predict(toy_batch().inputs)
    geometric = (OWN[0].softmax(1) * OWN[1].softmax(1)).sqrt()
    torch.testing.assert_close(probabilities, geometric / geometric.sum(1, keepdim=True))
    with pytest.raises(ValueError, match="'probabilities' or 'logits', not 'votes'"):
        Unimodal(toy_model(), average="votes")


def test_each_modality_keeps_its_own_best_epoch():
    """Epoch 1 is better for the first modality, epoch 0 for the second."""
    unimodal, batch = Unimodal(toy_model()), toy_batch()
    second = unimodal.model.heads[1]
    with torch.no_grad():
        unimodal.model.heads[0].weight.neg_()
        unimodal.epoch_end(0, batch, batch)
        before = second.weight.clone()
        unimodal.model.heads[0].weight.neg_()
        second.weight.neg_()
        unimodal.epoch_end(1, batch, batch)
    torch.testing.assert_close(unimodal.best_model.heads[0].weight, unimodal.model.heads[0].weight)
    torch.testing.assert_close(unimodal.best_model.heads[1].weight, before)
    assert unimodal.best_epochs == [1, 0]
    chosen, epoch = unimodal.chosen()
    assert epoch == 1
    assert torch.equal(chosen.model.heads[1].weight, before)
    assert torch.equal(second.weight, -before)  # the live one goes on as it was
    found = torch.stack([OWN[0].softmax(1), OWN[1].softmax(1)]).mean(0)
    torch.testing.assert_close(chosen.predict(batch.inputs), found)
    found = torch.stack([OWN[0].softmax(1), (-OWN[1]).softmax(1)]).mean(0)
    torch.testing.assert_close(unimodal.predict(batch.inputs), found)


def test_unimodal_models_are_chosen_one_by_one_and_their_ensemble_is_not():
    """Each has the weights of its own best epoch; the last ones are those of the last step."""
    rows = random_batch(240)
    rows = Batch(rows.inputs, (rows.inputs[0][:, :3] + rows.inputs[1][:, :3]).argmax(1))
    train_rows, validation = rows.rows(torch.arange(160)), rows.rows(torch.arange(160, 240))
    curves, states = [], []

    def look(strategy):
        with torch.no_grad():
            own = strategy.model.own(strategy.model.encode(validation.inputs))
        curves.append([(o.argmax(1) == validation.labels).double().mean().item() for o in own])
        states.append(copy.deepcopy(strategy.model.state_dict()))

    schedule = Schedule(12, lr=0.1)
    trained = train(Unimodal(trained_model()), train_rows, validation, schedule, 0, look)
    of_each = [list(curve) for curve in zip(*curves, strict=True)]
    epochs = [curve.index(max(curve)) for curve in of_each]
    assert len({*epochs, 11}) == 3  # two of their own, neither is the last
    assert trained.best_epoch == max(epochs)
    best, last = trained.best.model.state_dict(), trained.last.model.state_dict()
    for key in (k for k in best if not k.startswith("fusion")):
        modality = int(key.split(".")[1])
        assert torch.equal(best[key], states[epochs[modality]][key]), key
        assert torch.equal(last[key], states[-1][key]), key
    assert trained.best_validation == evaluate(trained.best, validation)
    assert trained.validation[-1] == evaluate(trained.last, validation)


def test_ogm():
    model, batch = toy_model(), toy_batch()
    scores = true_class_scores(model.slices(model.encode(batch.inputs)), LABELS)
    close(scores[0] / scores[1][None], 1.996406824)
    close(scores[1] / scores[0][None], 0.500899911)
    close(coefficients(scores, 0.8), 0.078765290, 1)


@pytest.mark.parametrize("noise", [False, True])
def test_ogm_changes_the_gradients_of_the_encoder_that_is_ahead(noise):
    model, batch = trained_model(), random_batch()
    ogm = OGM(model, alpha=1.0, noise=noise)
    ogm.backward(ogm.loss(batch))
    plain = [[p.grad.clone() for p in encoder.parameters()] for encoder in model.encoders]
    torch.manual_seed(0)
    ogm.after_backward()
    torch.manual_seed(0)
    assert sorted(ogm._coefficients < 1) == [False, True]
    for encoder, grads, factor in zip(model.encoders, plain, ogm._coefficients, strict=True):
        weight, bias = grads
        added = torch.randn_like(weight) * (weight.std() + 1e-8) if noise else 0.0
        torch.testing.assert_close(encoder.weight.grad, weight * factor + added)
        torch.testing.assert_close(encoder.bias.grad, bias * factor)


def test_ogm_outside_of_its_window_and_as_a_learning_rate():
    model, batch = trained_model(), random_batch()
    ogm = OGM(model, noise=False, window=(2, 3), as_lr=True)
    optimizer = torch.optim.SGD(ogm.parameter_groups(0.1), lr=0.1)
    for epoch, inside in ((0, False), (2, True), (3, False)):
        ogm.epoch_start(epoch, batch)
        ogm.step(batch, optimizer)
        assert (ogm.lr_scale != [1.0, 1.0]) == inside
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([*(0.1 * scale for scale in ogm.lr_scale), 0.1])


def test_mcr_is_the_objective_by_hand():
    model, batch = trained_model(), random_batch()
    mcr = MCR(model, weight=0.3, mipd=0.2, contrastive=0.7, num_permutations="all")
    loss = mcr.loss(batch)
    latents = model.encode(batch.inputs)
    regularizer = mcr_fast.MCRLoss(
        (3, 3), 3, mipd_weight=0.2, contrastive_weight=0.7, num_permutations="all"
    )
    by_hand = F.cross_entropy(model.fuse(latents), batch.labels)
    for logits in model.own(latents):
        by_hand = by_hand + 0.3 * F.cross_entropy(logits, batch.labels)
    by_hand = by_hand + regularizer(latents, batch.labels, fusion=model.fusion).loss
    torch.testing.assert_close(loss, by_hand)


@pytest.mark.parametrize("name", ["joint", "unimodal", "multi-loss", "OGM", "MCR"])
def test_training_learns_and_repeats(name):
    """Labels that a linear map of the inputs tells; the same seed gives the same weights."""

    def run():
        batch = random_batch(240)
        scores = batch.inputs[0][:, :3] + batch.inputs[1][:, :3]
        rows = Batch(batch.inputs, scores.argmax(1))
        train_rows, validation = rows.rows(torch.arange(160)), rows.rows(torch.arange(160, 240))
        strategy = find(name)(trained_model())
        return train(strategy, train_rows, validation, Schedule(15, lr=0.02), 0), validation

    trained, validation = run()
    assert max(trained.validation) > trained.validation[0]
    if name != "unimodal":  # whose modalities choose their epochs
        assert trained.validation[trained.best_epoch] == max(trained.validation)
        assert trained.best_validation == max(trained.validation)
    assert trained.best_validation > 0.55
    lost = evaluate_without(trained.best, validation, 0, torch.zeros(3))
    assert lost < trained.best_validation
    again = run()[0]
    for name, value in trained.last.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, again.last.state_dict()[name]), name


def test_an_unknown_strategy_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown strategy 'x'; known: joint, .*MCR"):
        find("x")
    assert len(STRATEGIES) == 21
