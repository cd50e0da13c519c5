"""Options of the strategies: that tuning's tries and the ablations are taken, when they begin."""

import json

import pytest
import torch
from rivals_steps import batch_of, model_of

from examples.competition import jobs, tuning
from examples.competition.rivals import STRATEGIES, find
from examples.competition.rivals.mcr import MCR
from examples.competition.rivals.unimodal import Unimodal
from examples.competition.training import Setting, data_of, fit, fresh_model, score

TRIES = [(method, json.dumps(options)) for method in STRATEGIES for options in tuning.TRIES[method]]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("variant", list(jobs.ABLATIONS))
def test_every_ablation_has_a_finite_loss_and_gradient(variant):
    model, batch = model_of(2), batch_of(2)
    chosen = {"weight": 1.0, "mipd": 0.1, "contrastive": 1.0}
    mcr = MCR(model, **{**chosen, **jobs.ABLATIONS[variant]})
    loss = mcr.loss(batch)
    mcr.backward(loss)
    assert loss.isfinite()
    trained = [*model.encoders.parameters(), *model.fusion.parameters()]
    for p in trained:
        assert p.grad.isfinite().all()
        assert p.grad.any()
    silent = jobs.ABLATIONS[variant].get("weight") == 0  # own heads have no other loss
    assert all(bool(head.weight.grad.any()) != silent for head in model.heads)


@pytest.mark.parametrize(("method", "options"), TRIES)
def test_every_try_makes_steps_of_adam(method, options):
    """Finite losses and weights; some of the encoders' or, if these are frozen, of the fusion's."""
    kind, batch, model = find(method), batch_of(2), model_of(2)
    taken = tuning.complete(method, json.loads(options), unimodal_weight=1.0)
    taken.pop("lr", None)
    if kind.needs_teachers:
        taken["teachers"] = Unimodal(model_of(2, seed=1))
    torch.manual_seed(0)
    strategy = kind(model, **taken)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(strategy.parameter_groups(0.01), lr=0.01)
    for epoch in (0, strategy.first_epoch()):
        strategy.epoch_start(epoch, batch)
        for rows in strategy.batches(batch, 6, torch.Generator().manual_seed(epoch)):
            assert strategy.loss(rows).isfinite()
            strategy.step(rows, optimizer)
        strategy.epoch_end(epoch, batch, batch)
    after = dict(model.named_parameters())
    assert all(p.isfinite().all() for p in strategy.parameters())
    trained = "fusion" if method == "frozen" else "encoders"
    changed = [not torch.equal(after[k], before[k]) for k in before if k.startswith(trained)]
    assert any(changed)


@pytest.mark.parametrize(
    ("method", "options", "epoch"),
    [
        ("joint", {}, 0),
        ("MCR", {}, 0),
        ("OGM", {}, 0),
        ("OGM", {"window": (3, 9)}, 3),
        ("OPM", {"warm_up": 4}, 4),
        ("MSLR", {"memory": 5}, 6),
        ("MSLR", {"memory": 5, "rates": [1.3, 0.7]}, 0),
        ("MILES", {}, 1),
        ("D&R", {"every": 10}, 11),
        ("Remix", {"warmup": 7}, 7),
        ("OMIB", {"warmup": 5}, 5),
    ],
)
def test_first_epoch(method, options, epoch):
    assert find(method)(model_of(2), **options).first_epoch() == epoch


@pytest.mark.parametrize(
    ("method", "options", "plain"),
    [
        ("OPM", {"warm_up": 2, "probability": 1.0, "base": 1.0}, "joint"),
        ("MSLR", {"memory": 2}, "joint"),
        ("MILES", {"threshold": 0.0}, "multi-loss"),
        ("D&R", {"every": 2}, "joint"),
        ("Remix", {"warmup": 2, "warmup_weight": 1.0}, "multi-loss"),
    ],
)
def test_before_its_first_epoch_a_strategy_is_another_one(method, options, plain):
    """Weights after each epoch are those of joint training or of multi-loss until then."""
    data = data_of(Setting("speed", 1.0, 0))
    batch = data.train.rows(torch.arange(256))

    def weights(name, options):
        torch.manual_seed(0)
        strategy = find(name)(fresh_model(data, 0), **options)
        optimizer = torch.optim.Adam(strategy.parameter_groups(0.003), lr=0.003)
        generator = torch.Generator().manual_seed(0)
        for epoch in range(5):
            strategy.train()
            strategy.epoch_start(epoch, batch)
            for rows in strategy.batches(batch, 64, generator):
                strategy.step(rows, optimizer)
            strategy.epoch_end(epoch, batch, data.validation.rows(torch.arange(200)))
            yield strategy.model.encoders[0][0].weight.detach().clone()

    first = find(method)(fresh_model(data, 0), **options).first_epoch()
    pairs = zip(weights(method, options), weights(plain, {}), strict=True)
    same = [torch.equal(one, other) for one, other in pairs]
    assert same == [epoch < first for epoch in range(5)]


def test_the_published_form_of_sfc_can_be_asked_for():
    """One named shortcut with an encoder of its own."""
    setting = Setting("speed", 1.0, 0)
    trained = fit("SFC", {"shortcuts": [1], "own_encoder": True}, setting, epochs=2)
    assert len(trained.best.encoders) == 1
    assert trained.best.shortcuts == (1,)
    own, fused = (
        m.state_dict() for m in (trained.last.encoders[0], trained.last.model.encoders[1])
    )
    assert not torch.equal(own["0.weight"], fused["0.weight"])
    assert trained.best_validation > 0.2


def test_scores_of_the_ensemble_are_those_of_its_own_best_epochs():
    setting = Setting("speed", 1.0, 0)
    trained, data = fit("unimodal", {}, setting, epochs=3), data_of(setting)
    found = score(trained, data)
    assert found.validation == trained.best_validation
    assert found.best_epoch == trained.best_epoch == max(trained.last.best_epochs)
    assert found.first_epoch == 0
    own = trained.last.best_model.own(trained.last.best_model.encode(data.test.inputs))
    right = [(o.argmax(1) == data.test.labels).double().mean().item() for o in own]
    assert list(found.alone) == pytest.approx(right)
    assert score(fit("Remix", {"warmup": 2}, setting, epochs=1), data).first_epoch == 2
