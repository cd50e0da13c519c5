"""The monitor's numbers are those that one computes by hand."""

import copy
import math
import pickle

import pytest
import torch
from contrastive import needs_library
from monitored import NAMES, C, Game, close
from torch.nn.functional import cross_entropy

import mcr_fast
from mcr_fast import MCRMonitor


def test_means_over_the_window():
    game, monitor = Game(), MCRMonitor(NAMES, every=None, window=3)
    outs = [game.step(monitor) for _ in range(5)][-3:]
    values = monitor.read()
    assert math.isnan(values["ceb"])  # of weight 0: not computed
    for name in ("loss", "mipd", "contrastive"):
        close(values[name], sum(getattr(out, name).item() for out in outs) / 3)
    single = sum(out.divergences for out in outs) / 3
    for m, name in enumerate(NAMES):
        close(values[f"divergence/{name}"], single[m].item())
        close(values[f"importance/{name}"], (single[m] / single.sum()).item())


def test_terms_of_frozen_encoders():
    """They are in the loss, though L_Con has no gradient."""
    game, monitor = Game(), MCRMonitor(NAMES)
    latents = [z.detach() for z in game.forward()[0]]
    fusion = torch.nn.Sequential(torch.nn.Linear(10, 8), torch.nn.ReLU(), torch.nn.Linear(8, C))
    out = game.mcr(latents, None, fusion=fusion)
    assert not out.contrastive.requires_grad
    monitor.update(out, candidates=9)
    values = monitor.read()
    for name in ("loss", "mipd", "contrastive"):
        close(values[name], getattr(out, name).item())
    close(values["mutual_information_bound"], math.log(9) - out.contrastive.item())
    assert math.isnan(values["ceb"])


@pytest.mark.parametrize("weights", [(0.0, 1.0, 0.0), (0.5, 0.0, 1.0)])
def test_terms_without_gradients(weights):
    """What has weight 0 was not seen, the rest was."""
    names = ("mipd", "contrastive", "ceb")
    options = {f"{name}_weight": weight for name, weight in zip(names, weights, strict=True)}
    game, monitor = Game(**options), MCRMonitor(NAMES)
    with torch.no_grad():
        _, out, _ = game.forward(labels=None)
        monitor.update(out, candidates=9)
    values = monitor.read()
    for name, weight in zip(names, weights, strict=True):
        close(values[name], getattr(out, name).item() if weight else math.nan)
    close(values["divergence/image"], out.divergences[0].item() if weights[0] else math.nan)
    bound = math.log(9) - out.contrastive.item() if weights[1] else math.nan
    close(values["mutual_information_bound"], bound)


def test_a_term_of_zero_with_a_gradient_counts():
    """A single row has no negatives; the candidates' logarithm is 0 too."""
    game, monitor = Game(rows=1), MCRMonitor(NAMES)
    _, out, _ = game.forward(labels=None)
    monitor.update(out, candidates=1)
    values = monitor.read()
    assert out.contrastive == values["contrastive"] == values["mutual_information_bound"] == 0


def test_batches_count_by_their_rows():
    monitor = MCRMonitor(NAMES, every=None)
    outs = [Game(rows, seed=rows).step(monitor) for rows in (9, 4, 0)]
    wanted = (9 * outs[0].contrastive + 4 * outs[1].contrastive) / 13
    close(monitor.read()["contrastive"], wanted.item())


def test_exponential_means():
    game, monitor = Game(), MCRMonitor(NAMES, every=None, window=4, average="exponential")
    losses = []
    for _ in range(11):
        losses.append(game.step(monitor).loss.item())
        if len(losses) % 3 == 0:
            monitor.read()  # which changes nothing
    factors = [0.75**age for age in range(11)][::-1]
    wanted = sum(f * x for f, x in zip(factors, losses, strict=True)) / sum(factors)
    close(monitor.read()["loss"], wanted)


def test_epoch_means():
    game, monitor = Game(), MCRMonitor(NAMES, every=2, window=3)
    for epoch in range(2):
        losses = [game.step(monitor).loss.item() for _ in range(7 + epoch)]
        close(monitor.read("epoch")["loss"], sum(losses) / len(losses))
        close(monitor.end_epoch()["loss"], sum(losses) / len(losses))
    assert [record["epoch"] for record in monitor.epochs] == [0, 1]
    assert [record["step"] for record in monitor.epochs] == [7, 15]
    assert math.isnan(monitor.read("epoch")["loss"])
    assert not math.isnan(monitor.read()["loss"])


@needs_library
def test_accuracies():
    game, monitor = Game(rows=8), MCRMonitor(NAMES)
    latents, out, alone = game.forward()
    labels = out.logits.argmax(1).clone()
    labels[:2] = -100  # is left out
    labels[2] = (labels[2] + 1) % C
    monitor.update(out, labels, alone)
    values = monitor.read()
    close(values["accuracy"], 5 / 6)
    for m, name in enumerate(NAMES):
        right = alone[m].argmax(1).eq(labels)[2:].float().mean().item()
        close(values[f"unimodal_accuracy/{name}"], right)


def test_accuracy_of_modalities_that_are_there():
    game, monitor = Game(rows=8), MCRMonitor(NAMES)
    _, out, alone = game.forward()
    labels = alone[0].argmax(1)
    present = torch.ones(8, 2, dtype=torch.bool)
    present[:4, 0] = present[:, 1] = False
    monitor.update(out, labels, alone, present=present)
    values = monitor.read()
    assert values["unimodal_accuracy/image"] == 1
    assert math.isnan(values["unimodal_accuracy/audio"])


def test_several_labels_at_once():
    game, monitor = Game(rows=8, divergence="binary_jsd", contrastive_weight=0.0), MCRMonitor(NAMES)
    _, out, _ = game.forward(labels=None)
    labels = out.logits > 0
    labels[0] = ~labels[0]
    monitor.update(out, labels)
    close(monitor.read()["accuracy"], 7 / 8)


def test_the_bound_is_of_instance_labels():
    game, monitor = Game(), MCRMonitor(NAMES)
    _, out, _ = game.forward(labels=None)
    monitor.update(out, candidates=9)
    close(monitor.read()["mutual_information_bound"], math.log(9) - out.contrastive.item())
    other = MCRMonitor(NAMES)
    other.update(out)
    assert math.isnan(other.read()["mutual_information_bound"])


def test_the_bound_holds():
    """Perfect embeddings of independent rows: I is log N at most; nothing seen of each other: 0."""
    monitor = MCRMonitor(NAMES)
    rows = 64
    mcr = mcr_fast.MCRLoss([rows, rows], 2, temperature=0.02)
    fusion = torch.nn.Linear(2 * rows, 2)
    out = mcr([torch.eye(rows), torch.eye(rows)], None, fusion=fusion)
    monitor.update(out, candidates=rows)
    assert monitor.read()["mutual_information_bound"] == pytest.approx(math.log(rows), abs=1e-3)
    monitor.reset()
    torch.manual_seed(0)
    out = mcr([torch.randn(rows, rows) for _ in range(2)], None, fusion=fusion)
    monitor.update(out, candidates=rows)
    assert monitor.read()["mutual_information_bound"] < 0


def test_watch_sees_the_call():
    game, monitor = Game(), MCRMonitor(NAMES)
    handle = monitor.watch(game.mcr, unimodal_logits=lambda: alone)
    alone = [torch.nn.functional.one_hot(game.labels, C).float()] * 2
    _, out, _ = game.forward()
    out.loss.backward()
    values = monitor.read()
    close(values["loss"], out.loss.item())
    assert values["unimodal_accuracy/audio"] == 1
    assert values["grad_norm/audio"] > 0
    assert math.isnan(values["mutual_information_bound"])
    game.mcr.eval()
    game.forward()
    game.mcr.train()
    with torch.no_grad():
        game.forward()
    assert monitor.step == 1
    _, out, _ = game.forward(labels=None)
    close(monitor.read()["mutual_information_bound"], math.log(9) - out.contrastive.item())
    handle.remove()
    game.forward()
    assert monitor.step == 2


def test_a_checkpoint_that_repeats_the_loss_is_no_step():
    game, monitor = Game(), MCRMonitor(NAMES)
    monitor.watch(game.mcr)
    out = torch.utils.checkpoint.checkpoint(lambda: game.forward()[1].loss, use_reentrant=False)
    out.backward()
    assert monitor.step == 1
    assert monitor.read()["grad_norm/image"] > 0


def test_inference_mode():
    game, monitor = Game(), MCRMonitor(NAMES)
    with torch.inference_mode():
        _, out, alone = game.forward()
        monitor.update(out, game.labels, alone)
    game.step(monitor)
    assert monitor.step == 2
    assert monitor.read()["loss"] > 0


@needs_library
def test_a_compiled_loss():
    """Its parts are not apart; the rest is there. A compiled function may hold the update."""
    game, monitor = Game(), MCRMonitor(NAMES)
    latents, _, _ = game.forward()
    out = torch.compile(game.mcr, backend="aot_eager")(latents, game.labels, fusion=game.fusion)
    monitor.update(out, game.labels, latents=latents)
    (cross_entropy(out.logits, game.labels) + out.loss).backward()
    values = monitor.read()
    close(values["loss"], out.loss.item())
    assert values["grad_norm/image"] > 0
    assert math.isnan(values["grad_cosine/image"])

    @torch.compile(backend="eager")
    def step(latents):
        out = game.mcr(latents, game.labels, fusion=game.fusion)
        monitor.update(out)
        return out.loss * 2

    for _ in range(3):
        step([z.detach() for z in latents])
    assert monitor.step == 4


def test_transforms_are_not_seen():
    game, monitor = Game(backend="reference"), MCRMonitor(NAMES)
    monitor.watch(game.mcr)
    latents, _, _ = game.forward()
    given = {"fusion": game.fusion}
    torch.func.grad(lambda z: game.mcr([z, latents[1]], game.labels, **given).loss)(latents[0])
    assert monitor.step == 1


def test_stride():
    """Gradients are looked at in the first update and in every third after it."""
    game, monitor, norms = Game(), MCRMonitor(NAMES, every=None, stride=3), []
    for _ in range(7):
        latents, out, _ = game.forward()
        latents[0].register_hook(lambda grad: norms.append(grad.norm().item()))
        monitor.update(out, latents=latents)
        out.loss.backward()
    close(monitor.read()["grad_norm/image"], sum(norms[::3]) / 3)
    assert monitor.step == 7


def test_not_a_number_shows():
    game, monitor = Game(), MCRMonitor(NAMES)
    game.inputs[0][0, 0] = torch.nan
    game.step(monitor)
    values = monitor.read()
    for name in ("loss", "divergence/image", "importance/audio", "grad_norm/image"):
        assert math.isnan(values[name])


def test_goes_on_from_a_state():
    game, monitor = Game(), MCRMonitor(NAMES, every=2, window=4)
    for _ in range(5):
        game.step(monitor)
    state = pickle.loads(pickle.dumps(monitor.state_dict()))
    other = MCRMonitor(NAMES, every=2, window=4)
    other.load_state_dict(state)
    for each in (monitor, other):
        torch.manual_seed(1)
        game.step(each)
    assert other.step == 6
    close(other.read(), monitor.read())
    close(other.end_epoch(), monitor.end_epoch())
    assert len(other.history) == 3
    with pytest.raises(ValueError, match="state_dict is of another monitor"):
        MCRMonitor(NAMES, window=7).load_state_dict(state)


def test_reset_and_nothing_seen():
    game, monitor = Game(), MCRMonitor(NAMES, every=1)
    assert monitor.summary() == "Nothing was seen yet."
    game.step(monitor)
    monitor.reset()
    assert monitor.step == 0
    assert monitor.history == []
    values = monitor.read()
    assert all(math.isnan(value) for value in values.values())


def test_an_objective():
    """It has a task loss, the modalities' own, and their logits."""
    game, monitor = Game(), MCRMonitor(NAMES)
    objective = mcr_fast.MCRObjective(game.mcr, unimodal_weight=2.0)
    monitor.watch(objective)
    latents, _, alone = game.forward()
    heads = [None, game.heads[1]]
    out = objective(latents, game.labels, fusion=game.fusion, unimodal_heads=heads)
    out.loss.backward()
    values = monitor.read()
    close(values["task"], out.task.item())
    close(values["unimodal_loss/audio"], out.unimodal[1].item())
    close(values["loss"], out.loss.item())
    right = alone[1].argmax(1).eq(game.labels).float().mean().item()
    close(values["unimodal_accuracy/audio"], right)
    for name in ("unimodal_loss/image", "unimodal_accuracy/image", "mutual_information_bound"):
        assert math.isnan(values[name])
    assert values["grad_task/image"] > 0


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_objectives_of_other_tasks(task):
    game = Game(divergence={"multilabel": "binary_jsd", "regression": "mse"}[task])
    monitor, objective = MCRMonitor(NAMES), mcr_fast.MCRObjective(game.mcr, task=task)
    monitor.watch(objective)
    latents, _, _ = game.forward(labels=None)
    labels = torch.rand(9, C).round()
    out = objective(latents, labels, fusion=game.fusion, unimodal_heads=game.heads)
    values = monitor.read()
    right = (out.logits > 0).float().eq(labels).float().mean().item()
    close(values["accuracy"], right if task == "multilabel" else math.nan)
    close(values["mutual_information_bound"], math.log(9) - out.contrastive.item())


@pytest.mark.parametrize(
    "labels",
    [
        {"classes": torch.arange(9) % C},
        torch.stack([torch.arange(9) % C] * 2, 1),
        torch.arange(9) % C,
        torch.arange(9).float(),
    ],
    ids=["dict", "integers of another shape", "integers", "numbers"],
)
def test_labels_of_a_callable_task_have_no_accuracy(labels):
    """They are whatever the callable takes; `watch` leaves them alone."""
    game, monitor = Game(), MCRMonitor(NAMES)
    objective = mcr_fast.MCRObjective(
        game.mcr, task=lambda logits, _: cross_entropy(logits, game.labels, reduction="none")
    )
    monitor.watch(objective)
    latents, _, _ = game.forward()
    out = objective(latents, labels, fusion=game.fusion, unimodal_heads=game.heads)
    values = monitor.read()
    close(values["task"], out.task.item())
    for name in ("accuracy", "unimodal_accuracy/image"):
        assert math.isnan(values[name])


def test_steps_without_the_regularizer_count_for_nothing():
    game, monitor = Game(), MCRMonitor(NAMES)
    objective = mcr_fast.MCRObjective(game.mcr, window=(1, 2))
    monitor.watch(objective)
    for step in range(3):
        latents, _, _ = game.forward()
        out = objective(latents, game.labels, fusion=game.fusion, unimodal_heads=game.heads)
        if step == 0:
            assert math.isnan(monitor.read()["importance/image"])
        if step == 1:
            seen = out
    values = monitor.read()
    close(values["divergence/image"], seen.divergences[0].item())
    close(values["contrastive"], seen.contrastive.item())


def test_names():
    assert MCRMonitor(3).modalities == ("modality_0", "modality_1", "modality_2")
    values = MCRMonitor(["a", "b"]).read()
    assert {"importance/a", "divergence/b", "grad_cosine/a", "mutual_information_bound"} < set(
        values
    )


def test_copies_of_a_watched_loss_are_unwatched():
    game, monitor = Game(), MCRMonitor(NAMES)
    monitor.watch(game.mcr)
    for copied in (copy.deepcopy(game.mcr), pickle.loads(pickle.dumps(game.mcr))):
        game.mcr = copied
        game.forward()
    assert monitor.step == 0
