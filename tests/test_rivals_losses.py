"""MMCosine and SFC, which change the loss; and that all of these strategies learn."""

import pytest
import torch
import torch.nn.functional as F
from rivals_steps import assert_gradients, batch_of, by_autograd, close, learn, model_of
from rivals_toy import FUSED, LABELS, OWN, tensor, toy_batch, toy_model

from examples.competition.model import Batch
from examples.competition.rivals.mmcosine import MMCosine, cosine_logits
from examples.competition.rivals.sfc import SFC, row_weights

NAMES = ["MMCosine", "OPM", "AGM", "MLB", "MSLR", "MILES", "MMPareto", "SFC"]
LATENTS = (
    torch.tensor([[3, 4], [1, 0], [0, 2]], dtype=torch.float64),
    torch.tensor([[1, 1], [0, 1], [2, 0]], dtype=torch.float64),
)
WEIGHTS = (
    torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=torch.float64),
    torch.tensor([[1, 1], [1, 0], [0, -1]], dtype=torch.float64),
)


def test_mmcosine():
    logits = cosine_logits(LATENTS, WEIGHTS, 10.0)
    close(logits[0], 16, 15.071067812, 2.828427125)
    close(logits[1], 17.071067812, 0, -2.928932188)
    close(logits[2], 7.071067812, 20, 7.071067812)
    close(F.cross_entropy(logits, LABELS)[None], 10.110960977)


def test_mmcosine_of_a_latent_of_zeros():
    latents = (torch.zeros(3, 2).double(), LATENTS[1])
    alone = cosine_logits(LATENTS[1:], WEIGHTS[1:], 10.0)
    torch.testing.assert_close(cosine_logits(latents, WEIGHTS, 10.0), alone)


@pytest.mark.parametrize("modalities", [2, 3])
def test_mmcosine_trains_and_predicts_with_the_cosines(modalities):
    model, batch = model_of(modalities), batch_of(modalities)
    cosine = MMCosine(model, scale=15.0)
    logits = torch.zeros(len(batch), 3)
    start = 0
    for z in model.encode(batch.inputs):
        w = model.fusion.weight[:, start : start + z.shape[1]]
        for c in range(3):
            logits[:, c] += 15 * (z @ w[c]) / (z.norm(dim=1) * w[c].norm())
        start += z.shape[1]
    used = [*model.encoders.parameters(), model.fusion.weight]
    expected = by_autograd(F.cross_entropy(logits, batch.labels), used)
    cosine.backward(cosine.loss(batch))
    assert_gradients(used, expected)
    assert model.fusion.bias.grad is None
    torch.testing.assert_close(cosine.predict(batch.inputs), logits.softmax(1))


def test_mmcosine_does_not_see_the_size_of_a_latent():
    model, batch = model_of(2), batch_of(2)
    before = MMCosine(model).predict(batch.inputs)
    with torch.no_grad():
        for p in model.encoders[0].parameters():
            p.mul_(7)
    torch.testing.assert_close(MMCosine(model).predict(batch.inputs), before)


def test_sfc():
    fused, own = (F.cross_entropy(o, LABELS, reduction="none") for o in (FUSED, OWN[0]))
    weights = row_weights(fused, own[None])
    close(weights, 0.588499120, 0.469546936, 0.381231543)
    close((weights * fused).mean()[None], 0.270672612)
    close(SFC(toy_model(), [0]).loss(toy_batch())[None], 0.270672612 + 0.490419717)


def test_sfc_of_several_shortcuts():
    fused, shortcuts = tensor(1, 1, 0), torch.stack([tensor(1, 3, 0), tensor(3, 0, 2)])
    close(row_weights(fused, shortcuts), 0.5 * 0.75, 0.75 * 0, 0.5 * 1)
    close(row_weights(fused, shortcuts, "least"), 0.5, 0, 0.5)
    close(row_weights(tensor(0), tensor(0)[None]), 0.5)  # neither fails
    certain = Batch(tuple(1000 * torch.eye(3).double() for _ in range(2)), LABELS)
    model = toy_model()
    SFC(model).loss(certain).backward()
    assert torch.isfinite(model.fusion.weight.grad).all()


@pytest.mark.parametrize("own_encoder", [False, True])
@pytest.mark.parametrize(("modalities", "shortcuts"), [(2, [0]), (2, None), (3, [2, 0]), (3, None)])
def test_sfc_weighs_rows_and_keeps_shortcuts_apart(own_encoder, modalities, shortcuts):
    model, batch = model_of(modalities), batch_of(modalities)
    sfc = SFC(model, shortcuts, own_encoder=own_encoder)
    latents, labels = model.encode(batch.inputs), batch.labels
    fused = F.cross_entropy(model.fuse(latents), labels, reduction="none")
    weights, own_losses = torch.ones(len(labels)), []
    for m in range(modalities) if shortcuts is None else shortcuts:
        own = F.cross_entropy(model.heads[m](latents[m]), labels, reduction="none")
        weights = weights * (own / (fused + own)).detach()
        own_losses.append(own.mean())
    sfc.backward(sfc.loss(batch))
    task = (weights * fused).mean()
    of_task = [*model.encoders.parameters(), *model.fusion.parameters()]
    assert_gradients(of_task, by_autograd(task, of_task))
    heads = list(model.heads.parameters())
    assert_gradients(heads, by_autograd(torch.stack(own_losses).sum(), heads))
    if own_encoder:  # they start as copies
        for i, m in enumerate(sfc.shortcuts):
            of_own = by_autograd(own_losses[i], list(model.encoders[m].parameters()))
            assert_gradients(sfc.encoders[i].parameters(), of_own)
        trained = {id(p) for group in sfc.parameter_groups(0.1) for p in group["params"]}
        assert {id(p) for p in sfc.encoders.parameters()} <= trained


@pytest.mark.parametrize("shortcuts", [[], [2], [0, -1]])
def test_sfc_names_a_wrong_shortcut(shortcuts):
    with pytest.raises(ValueError, match="no shortcuts among 2 modalities"):
        SFC(model_of(2), shortcuts)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_training_learns(name, modalities):
    trained = learn(name, modalities, epochs=10)
    assert max(trained.validation) > trained.validation[0]
    assert max(trained.validation) > 0.55


@pytest.mark.parametrize("name", NAMES)
def test_training_repeats(name):
    one, other = (learn(name, 3, epochs=7).last.state_dict() for _ in range(2))
    for key, value in one.items():
        assert torch.equal(value, other[key]), key
