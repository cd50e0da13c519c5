"""Rivals with parts of their own: OMIB, ARM, UMT, frozen encoders; and all of them trained."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rivals_steps import batch_of, close, model_of
from rivals_toy import FUSED, LABELS, OWN, tensor, toy_batch, toy_model, trained_model
from sklearn.metrics import normalized_mutual_info_score
from torch import nn

from examples.competition.model import Batch, MultimodalModel
from examples.competition.rivals import find
from examples.competition.rivals.arm import (
    ARM,
    binned,
    conditional_information,
    contributions,
    entropy,
    factors,
    mutual_information,
)
from examples.competition.rivals.frozen import Frozen
from examples.competition.rivals.omib import (
    OMIB,
    divergences,
    gaussian_divergences,
    largest_beta,
    relevances,
)
from examples.competition.rivals.umt import UMT, distances
from examples.competition.rivals.unimodal import Unimodal
from examples.competition.strategy import Strategy
from examples.competition.trainer import Schedule, evaluate_without, train

pytestmark = pytest.mark.usefixtures("one_thread")


def three_model(seed: int = 0) -> MultimodalModel:
    torch.manual_seed(seed)
    return MultimodalModel([nn.Linear(4, 3) for _ in range(3)], (3, 3, 3), 3)


def three_batch(rows: int = 24) -> Batch:
    """Three modalities; the label is the largest of the first inputs' sum."""
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(rows, 4, generator=generator) for _ in range(3))
    return Batch(inputs, sum(x[:, :3] for x in inputs).argmax(1))


def same_gradients(strategy: Strategy, found: torch.Tensor, by_hand: torch.Tensor) -> None:
    torch.testing.assert_close(found, by_hand)
    wanted = [p for p in strategy.parameters() if p.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(found, wanted, allow_unused=True),
        torch.autograd.grad(by_hand, wanted, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


# OMIB


def test_omib_in_numbers():
    close(divergences(OWN[0], FUSED), 0.013159592, 0.007946831, 0.116665049)
    close(divergences(OWN[1], FUSED), 0.462187190, 0.115535770, 0.052685891)
    close(relevances(OWN, FUSED), 1, 0.091167854)
    close(relevances(OWN, FUSED, mean_of_ratios=True), 1, 0.007142285)
    mean, log_variance = tensor(0.5, -1)[None], tensor(1, 0.25).log()[None]
    close(gaussian_divergences(mean, log_variance), 0.943147181)
    assert largest_beta(0.8, (2, 2), 0.5) == pytest.approx(0.158730159, abs=1e-8)


def test_relevances_the_other_way_round_and_of_equal_logits():
    reverse = [divergences(FUSED, o).mean() for o in OWN]
    close(relevances(OWN, FUSED, fused_first=True)[1], (1 - (reverse[1] / reverse[0]).log().tanh()))
    close(relevances([FUSED, FUSED], FUSED), 1, 1)
    found = relevances([FUSED, *OWN], FUSED)  # the first modality knows nothing more
    assert found.isfinite().all()
    assert found[0] == 1
    assert (found[1:] < 1e-8).all()


@pytest.mark.parametrize("options", [{}, {"mean_of_ratios": True}, {"fused_first": True}])
def test_omib_by_hand(options):
    model, batch = three_model(), three_batch()
    omib = OMIB(model, width=4, warmup=1, beta=0.3, **options)
    omib.epoch_start(1, batch)
    torch.manual_seed(1)
    loss = omib.loss(batch)
    torch.manual_seed(1)
    tokens, kl = [], []
    latents = model.encode(batch.inputs)
    for z, gaussian in zip(latents, omib.gaussians, strict=True):
        mean, log_variance = gaussian(z)[:, :4], gaussian(z)[:, 4:]
        tokens.append(mean + torch.randn(24, 4) * (0.5 * log_variance).exp())
        divergence = (log_variance.exp() + mean**2 - 1 - log_variance).sum(1) / 2
        kl.append(divergence.mean())
    xi = omib.attention(torch.stack(tokens, 1)).mean(1)
    fused = omib.head(xi)
    heads = zip(omib.task_heads, latents, strict=True)
    own = [head(torch.cat((z, xi), 1)) for head, z in heads]
    r = relevances([o.detach() for o in own], fused.detach(), **options).tolist()
    by_hand = F.cross_entropy(fused, batch.labels)
    for o, weight, each in zip(own, r, kl, strict=True):
        by_hand = by_hand + F.cross_entropy(o, batch.labels) + 0.3 * weight * each
    same_gradients(omib, loss, by_hand)


def test_omib_warms_up_without_the_fusion_and_predicts_without_noise():
    model, batch = three_model(), three_batch()
    omib = OMIB(model, warmup=1)
    omib.epoch_start(0, batch)
    torch.manual_seed(1)
    loss = omib.loss(batch)
    torch.manual_seed(1)
    noise = torch.randn(24, 3)
    by_hand = 0.0
    for head, z in zip(omib.task_heads, model.encode(batch.inputs), strict=True):
        by_hand = by_hand + F.cross_entropy(head(torch.cat((z, noise), 1)), batch.labels)
    same_gradients(omib, loss, by_hand)
    omib.loss(batch).backward()
    assert omib.head.weight.grad is None
    assert torch.equal(omib.eval().predict(batch.inputs), omib.predict(batch.inputs))


# ARM


def test_arm_in_numbers():
    x, y, z = (tensor(*map(int, bits)) for bits in ("00110110", "00111100", "01010101"))
    nmi = mutual_information(x, y, bins=2)
    close(nmi, 0.188721876)
    codes = binned(x, 2), binned(y, 2)
    close(nmi * (entropy(codes[0]) + entropy(codes[1])) / 2, 0.130812036)
    ncmi = conditional_information(x, y, [z])
    close(ncmi, 0.25)
    conditional = [entropy(binned(z, 2) * 2 + c) - entropy(binned(z, 2)) for c in codes]
    close(ncmi * (conditional[0] + conditional[1]), 0.346573590)


def test_information_of_histograms_is_scikit_learns():
    torch.manual_seed(0)
    x = torch.randn(50, 4)
    y = x + torch.randn(50, 4)

    def bins(a):
        edges = np.histogram_bin_edges(a, 30)
        return np.digitize(a, edges[1:-1])

    codes = bins(x.flatten().double().numpy()), bins(y.flatten().double().numpy())
    found = mutual_information(x.double(), y.double())
    assert found.item() == pytest.approx(normalized_mutual_info_score(*codes), abs=1e-12)


def test_information_of_numbers_that_are_all_alike():
    x, y = torch.ones(8), torch.arange(8.0)
    close(mutual_information(x, x), 0)
    close(mutual_information(x, y), 0)
    close(mutual_information(y, y), 1)
    close(conditional_information(x, x, [y]), 0)
    close(conditional_information(y, y, [x, x]), 0.5)
    close(conditional_information(y, y, [y]), 0)  # nothing left to know


def test_contributions_and_factors():
    found = contributions(tensor(0.6)[0], tensor(0.5, 0.2), tensor(0.3, 0.2), tensor(0.1, 0.25))
    close(found, 0.6 * 0.3 + 0.5 * 0.2, 0.6 * 0.2 - 0.2 * 0.05)
    close(factors(tensor(0.2, 0.1), 5.0), 0.5, 2)  # the weaker one is raised
    close(factors(tensor(0.2, 0.1, 0.3), 5.0), 1, 2.5, 0.5)
    close(factors(tensor(0.2, 0.01), 5.0), 0.2, 5)
    close(factors(tensor(0.2, -0.3), 5.0), 0.2, 5)
    close(factors(tensor(-0.2, -0.3), 5.0), 1, 1)


@pytest.mark.parametrize("modalities", [2, 3])
def test_arm_by_hand(modalities):
    """Each latent times a constant; information with the fused latent, given the others."""
    batch = three_batch()
    batch = Batch(batch.inputs[:modalities], batch.labels)
    encoders = three_model().encoders[:modalities]
    model = MultimodalModel(list(encoders), (3,) * modalities, 3)
    arm = ARM(model)
    latents = model.encode(batch.inputs)
    fused = arm.fuse(torch.cat(latents, 1))
    p = [arm.classifier(z).softmax(1)[range(24), batch.labels].mean() for z in (fused, *latents)]
    of_each = []
    for m, z in enumerate(latents):
        others = [latents[j] for j in range(modalities) if j != m]
        nmi, ncmi = mutual_information(z, fused), conditional_information(z, fused, others)
        of_each.append((p[0] * nmi + p[m + 1] * (nmi - ncmi)).item())
    scale = factors(torch.tensor(of_each), 5.0)
    scaled = [z * factor for z, factor in zip(latents, scale.tolist(), strict=True)]
    by_hand = F.cross_entropy(arm.classifier(arm.fuse(torch.cat(scaled, 1))), batch.labels)
    same_gradients(arm, arm.loss(batch), by_hand)
    torch.testing.assert_close(arm.running, 0.9 + 0.1 * scale)
    expected = arm.logits(latents, arm.running).softmax(1)
    assert torch.equal(arm.predict(batch.inputs), expected)
    if modalities == 2:
        swapped = ARM(model, swapped_scores=True)
        swapped.load_state_dict(arm.state_dict())
        nmi = torch.stack([mutual_information(z, fused) for z in latents])
        given = [conditional_information(latents[m], fused, [latents[1 - m]]) for m in range(2)]
        found = contributions(p[0], torch.stack([p[2], p[1]]), nmi, torch.stack(given))
        torch.testing.assert_close(
            swapped.batch_factors(latents, batch.labels), factors(found, 5.0), check_dtype=False
        )


def test_arm_learns_no_factor_from_what_it_is_asked():
    model, batch = three_model(), three_batch()
    arm = ARM(model).eval()
    before = arm.running.clone()
    arm.loss(batch)
    assert torch.equal(arm.running, before)
    with pytest.raises(ValueError, match=r"one width, not \(3, 2\)"):
        ARM(MultimodalModel([nn.Linear(4, 3), nn.Linear(4, 2)], (3, 2), 3))


# UMT and frozen encoders


def test_umt_in_numbers():
    close(0.5 * distances(OWN, (OWN[0] + 1, OWN[1])), 0.5)
    teachers = Unimodal(toy_model())
    umt = UMT(toy_model(), teachers, scale=0.5)
    close(umt.loss(toy_batch()), 0.631534464)  # the teachers' latents are the same


def teachers_of(model: MultimodalModel) -> Unimodal:
    """Other encoders, with dropout, so that training mode would be noticed."""
    with torch.random.fork_rng():
        torch.manual_seed(9)
        encoders = [nn.Sequential(nn.Linear(4, d), nn.Dropout(0.5)) for d in model.widths]
        return Unimodal(MultimodalModel(encoders, model.widths, model.classes))


def test_umt_by_hand():
    model, batch = three_model(), three_batch()
    teachers = teachers_of(model)
    umt = UMT(model, teachers, scale=2.0).train()
    latents = model.encode(batch.inputs)
    by_hand = F.cross_entropy(model.fuse(latents), batch.labels)
    for z, teach, x in zip(latents, teachers.best_model.encoders, batch.inputs, strict=True):
        by_hand = by_hand + 2 * (z - teach[0](x)).square().mean()
    same_gradients(umt, umt.loss(batch), by_hand)
    trained = {id(p) for group in umt.parameter_groups(0.1) for p in group["params"]}
    assert trained == {id(p) for p in model.parameters()}
    assert not any(p.requires_grad for p in umt.teachers.parameters())


def test_frozen_trains_the_fusion_only():
    model, batch = three_model(), three_batch()
    teachers = teachers_of(model)
    frozen = Frozen(model, teachers).train()
    latents = [e[0](x) for e, x in zip(teachers.best_model.encoders, batch.inputs, strict=True)]
    torch.testing.assert_close(frozen.encode(batch.inputs), latents)
    before = [p.clone() for p in (*model.encoders.parameters(), *model.fusion.parameters())]
    optimizer = torch.optim.Adam(frozen.parameter_groups(0.1), lr=0.1, weight_decay=0.1)
    frozen.step(batch, optimizer)
    after = [*model.encoders.parameters(), *model.fusion.parameters()]
    changed = [not torch.equal(a, b) for a, b in zip(after, before, strict=True)]
    assert changed == [False] * 6 + [True] * 2
    assert not any(
        torch.equal(p, q) and p is q
        for p, q in zip(
            model.encoders.parameters(), teachers.best_model.encoders.parameters(), strict=True
        )
    )


def test_teachers_are_of_the_models_widths():
    for strategy in (UMT, Frozen):
        assert strategy.needs_teachers
        with pytest.raises(ValueError, match=r"teachers of widths \(3, 3\), not \(3, 3, 3\)"):
            strategy(three_model(), Unimodal(trained_model()))


# all of them

RIVALS = {
    "D&R": {"every": 3},
    "ReconBoost": {"agreement": 0.5},
    "MLA": {},
    "Remix": {"warmup": 4},
    "OMIB": {"warmup": 2},
    "ARM": {},
    "UMT": {},
    "frozen": {},
}


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("name", list(RIVALS))
def test_training_learns_and_repeats(name, modalities):
    """Labels that a linear map of all inputs tells; of two, a seed gives the same weights again."""
    batch = batch_of(modalities, 160)
    rows = Batch(batch.inputs, sum(x[:, :3] for x in batch.inputs).argmax(1))
    train_rows, validation = rows.rows(torch.arange(120)), rows.rows(torch.arange(120, 160))
    schedule = Schedule(18, lr=0.04)

    def model():
        found = model_of(modalities)
        if name in ("MLA", "ARM") and modalities == 3:  # latents of one width
            encoders = [nn.Linear(x.shape[1], 3) for x in rows.inputs]
            return MultimodalModel(encoders, (3, 3, 3), 3)
        return found

    def run():
        options = dict(RIVALS[name])
        torch.manual_seed(0)
        if find(name).needs_teachers:
            teachers = train(Unimodal(model()), train_rows, validation, schedule, 0)
            options["teachers"] = teachers.last
        return train(find(name)(model(), **options), train_rows, validation, schedule, 0)

    trained = run()
    assert trained.validation[trained.best_epoch] == max(trained.validation) > 0.55
    lost = evaluate_without(trained.best, validation, 0, torch.zeros(3))
    assert lost < max(trained.validation)
    if modalities == 3:
        return
    again = run().last.state_dict()
    for key, value in trained.last.state_dict().items():
        assert torch.equal(value, again[key]), key


def test_labels_are_those_of_the_toy():
    assert toy_batch().labels.tolist() == LABELS.tolist() == [0, 1, 2]
