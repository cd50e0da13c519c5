"""OPM, AGM and MLB, which change latents and gradients in each step."""

import math
from itertools import permutations

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
from rivals_toy import FUSED, LABELS, OWN, tensor, toy_batch, toy_model

from examples.competition.rivals import agm, mlb
from examples.competition.rivals.agm import AGM, lead, losses, shapley_split
from examples.competition.rivals.mlb import MLB
from examples.competition.rivals.opm import OPM, drop, dropped_share, dropping_rates
from examples.competition.strategy import mean_of_others, true_class_scores

SGD, ADAM = torch.optim.SGD, torch.optim.Adam


def toy_scores():
    return true_class_scores(OWN, LABELS)


def test_opm():
    rates = dropping_rates(toy_scores(), 0.5, 0.5)
    close(rates, 0.690020245, 0)
    share = dropped_share(rates, (3, 3))
    close(share[None], 0.345010123)
    close(1 / (1 - share[None]), 1.526741152)
    close(dropped_share(tensor(0.5, 0), (1, 3))[None], 0.125)


def test_opm_rates_are_probabilities():
    close(dropping_rates(tensor(9, 1), 0.9, 0.5), 1, 0)
    close(dropping_rates(tensor(9, 1), 0.9, -3.0), 0, 0)
    close(dropping_rates(tensor(2, 2), 0.5, 0.5), 0, 0)
    close(dropping_rates(tensor(1, 0), 0.5, 0.5), 0.75, 0)  # over nothing: tanh is 1
    close(dropping_rates(tensor(0, 0), 0.5, 0.5), 0, 0)


def test_opm_drops_rows_of_latents():
    latents = [torch.ones(3, 2), 2 * torch.ones(3, 1)]
    kept = torch.tensor([[True, False], [False, False], [True, True]])
    found, labels = drop(latents, LABELS, kept, torch.tensor(0.5))
    assert labels.tolist() == [0, 2]
    assert [z.tolist() for z in found] == [[[2, 2], [2, 2]], [[0], [4]]]


@pytest.mark.parametrize("modalities", [2, 3])
def test_opm_trains_on_what_is_left(modalities):
    model, batch = model_of(modalities), batch_of(modalities, 40)
    opm = OPM(model, base=0.8, probability=1.0)
    opm.epoch_start(5, batch)
    torch.manual_seed(3)
    gradients_of_step(opm, batch)
    torch.manual_seed(3)
    assert torch.rand(()) < 1
    latents = model.encode(batch.inputs)
    rates = dropping_rates(true_class_scores(model.slices(latents), batch.labels), 0.8, 0.5)
    draws = torch.rand(40, modalities)
    assert (draws < rates).any()
    rate_of_number = torch.cat([rates[m].expand(z.shape[1]) for m, z in enumerate(latents)])
    rows = []
    for i in range(40):
        left = [z[i] * float(draws[i, m] >= rates[m]) for m, z in enumerate(latents)]
        rows.append(model.fusion(torch.cat(left) / (1 - rate_of_number.mean())))
    loss = F.cross_entropy(torch.stack(rows), batch.labels)
    parameters = [*model.encoders.parameters(), *model.fusion.parameters()]
    assert_gradients(parameters, by_autograd(loss, parameters))


@pytest.mark.parametrize(
    ("epoch", "probability", "changes"), [(4, 1.0, False), (5, 0.0, False), (5, 1.0, True)]
)
def test_opm_waits_for_its_epoch_and_its_batch(epoch, probability, changes):
    model, batch = model_of(2), batch_of(2, 40)
    opm = OPM(model, probability=probability)
    opm.epoch_start(epoch, batch)
    assert torch.equal(opm.loss(batch), joint(model, batch)) != changes


def test_opm_skips_a_batch_of_which_nothing_is_left():
    """Equal scores of three modalities, each above the mean of the others by a rounding."""
    model = model_of(3)
    with torch.no_grad():
        model.fusion.weight.zero_()
        model.fusion.bias.zero_()
    sizes = range(1, 200)
    rates = {n: dropping_rates(torch.ones(3) * n / 3, 1.0, 0.5) for n in sizes}
    rows = next(n for n in sizes if rates[n].min() == 1)
    batch = batch_of(3, rows)
    opm = OPM(model, base=1.0, probability=1.0, warm_up=1)
    optimizer = ADAM(opm.parameter_groups(0.1), lr=0.1)
    opm.step(batch, optimizer)  # gives Adam a momentum
    before = [p.clone() for p in model.encoders.parameters()]
    with torch.no_grad():
        model.fusion.weight.zero_()
        model.fusion.bias.zero_()
    opm.epoch_start(1, batch)
    opm.step(batch, optimizer)
    assert opm._rows == 0
    for p, old in zip(model.encoders.parameters(), before, strict=True):
        assert torch.equal(p, old)
    assert not model.fusion.weight.any()
    assert not model.fusion.bias.any()


def test_agm():
    f, f_1, f_2 = FUSED, *OWN  # what is left of the logits with the other input 0
    fused = {frozenset({0, 1}): f, frozenset({0}): f_1, frozenset({1}): f_2}
    parts = shapley_split(fused, 2)
    torch.testing.assert_close(parts, list(OWN))
    found = losses(parts, LABELS)
    close(lead(found), 2.042409229, 0.489617842)
    close(agm.coefficients(found, torch.zeros(2), 1.0, 10.0), 0.352604154, 1.665927720)
    running = tensor(1.0, 1.2)
    close(lead(running), 1.221402758, 0.818730753)
    close(agm.coefficients(found, running, 1.0, 10.0), 0.439988596, 1.389734763)


def test_agm_keeps_the_mean_of_its_losses():
    strategy = AGM(toy_model())
    strategy.loss(toy_batch())
    close(strategy.running, 0.490419717, 1.204549822)
    strategy.running, strategy.steps = tensor(1.0, 1.2), 4
    strategy.loss(toy_batch())
    close(strategy.running, 0.898083943, 1.200909964)
    assert strategy.steps == 5


def test_agm_is_bounded():
    wrong = 1000 * torch.eye(3, dtype=torch.float64)[[1, 2, 0]]
    close(losses([wrong, -wrong], LABELS), -math.log(1e-8), math.log(2))
    running = tensor(0, 5)
    found = agm.coefficients(tensor(5, 0), running, 0.3, 10.0)
    close(found, math.exp(3), math.exp(0.3 * (math.exp(-5) - math.exp(5))))
    close(agm.coefficients(tensor(5, 0), running, 0.3, 7.0)[0][None], math.exp(2.1))


def shapley_by_orders(model, inputs):
    """The mean over all orders of what a modality adds when it is the next to be seen."""
    m = len(inputs)

    def seen(modalities):
        masked = [x if i in modalities else torch.zeros_like(x) for i, x in enumerate(inputs)]
        return model.fuse(model.encode(masked))

    orders = list(permutations(range(m)))
    parts = [seen([]) / m for _ in inputs]
    for order in orders:
        for i, each in enumerate(order):
            parts[each] = parts[each] + (seen(order[: i + 1]) - seen(order[:i])) / len(orders)
    return parts


@pytest.mark.parametrize("modalities", [2, 3])
def test_agm_scales_the_gradient_of_each_part(modalities):
    model, batch = model_of(modalities), batch_of(modalities)
    strategy = AGM(model, alpha=1.5)
    strategy.running, strategy.steps = torch.linspace(0.5, 1.5, modalities), 3
    parts = shapley_by_orders(model, batch.inputs)
    logits = torch.stack(parts).sum(0)
    torch.testing.assert_close(logits, model.fuse(model.encode(batch.inputs)))
    task = F.cross_entropy(logits, batch.labels)
    arriving = torch.autograd.grad(task, logits, retain_graph=True)[0]
    own = torch.stack([F.cross_entropy(part, batch.labels) for part in parts]).detach()
    m, old = modalities, strategy.running
    ratio = torch.exp(m / (m - 1) * (own.mean() - own))
    expected = torch.exp(m / (m - 1) * (old.mean() - old))
    factors = torch.exp(1.5 * (expected - ratio).clamp(max=10))
    scaled = sum((factors[i] * arriving * part).sum() for i, part in enumerate(parts))
    parameters = [*model.encoders.parameters(), *model.fusion.parameters()]
    gradients = by_autograd(scaled, parameters)
    loss = strategy.loss(batch)
    torch.testing.assert_close(loss, task)
    strategy.backward(loss)
    assert_gradients(parameters, gradients)


def test_agm_with_alpha_0_is_joint():
    model, batch = model_of(3), batch_of(3)
    parameters = list(model.parameters())
    expected = by_autograd(joint(model, batch), parameters)
    gradients_of_step(AGM(model, alpha=0.0), batch)
    assert_gradients(parameters, expected)


def test_mlb():
    scores = toy_scores() / 3
    close(mean_of_others(scores) / scores, 0.500899911, 1.996406824)
    close(mlb.coefficients(scores, 0.5, 2.0), 0.755504349, 1.460703062)
    close(mlb.coefficients(scores, 0.5, 3.0, mode=1), 0.755504349, 1.460703062)
    close(mlb.coefficients(scores, 0.5, 0.5), 0.755504349, 1 - 0.5 * 0.460703062)
    strategy = MLB(toy_model(), weight=0.5, beta=2.0)
    close(strategy.loss(toy_batch())[None], 1.479019234)
    close(strategy._coefficients, 0.755504349, 1.460703062)


def test_mlb_of_a_score_of_0_is_bounded():
    close(mlb.coefficients(tensor(0, 0.5), 0.5, 10.0), 10, 1 - math.tanh(0.5))
    close(mlb.coefficients(tensor(0, 0), 2.0, 10.0), 1 - math.tanh(2), 1 - math.tanh(2))


@pytest.mark.parametrize("modalities", [2, 3])
def test_mlb_scales_encoders_and_weights_of_heads(modalities):
    model, batch = model_of(modalities), batch_of(modalities)
    strategy = MLB(model, weight=0.3, alpha=2.0, beta=4.0)
    rows = torch.arange(len(batch))
    own = model.own(model.encode(batch.inputs))
    s = torch.stack([o.softmax(1)[rows, batch.labels].mean() for o in own]).detach()
    g = [(s.sum() - s[m]) / (modalities - 1) / s[m] for m in range(modalities)]
    k = [1 + (3 if x > 1 else 1) * torch.tanh(2 * (x - 1)) for x in g]
    assert min(k) < 1 < max(k)
    parameters = list(model.parameters())
    plain = dict(
        zip(parameters, by_autograd(multi_loss(model, batch, 0.3), parameters), strict=True)
    )
    gradients_of_step(strategy, batch)
    for encoder, head, factor in zip(model.encoders, model.heads, k, strict=True):
        scaled = [*encoder.parameters(), head.weight]
        assert_gradients(scaled, [factor * plain[p] for p in scaled])
        assert_gradients([head.bias], [plain[head.bias]])
    assert_gradients(model.fusion.parameters(), [plain[p] for p in model.fusion.parameters()])


def test_mlb_as_a_learning_rate_is_the_same_step_of_sgd_and_another_one_of_adam():
    batch = batch_of(2)
    for optimizer, same in ((SGD, True), (ADAM, False)):
        found = [steps(MLB(model_of(2), as_lr=as_lr), batch, optimizer) for as_lr in (False, True)]
        scaled = {name for name in found[0] if "encoders" in name or "heads" in name}
        for name, value in found[0].items():
            close_by = torch.allclose(value, found[1][name], rtol=1e-4, atol=1e-6)
            of_bias = name.startswith(("heads", "fusion")) and name.endswith("bias")
            assert close_by == (same or name not in scaled or of_bias), (optimizer, name)
