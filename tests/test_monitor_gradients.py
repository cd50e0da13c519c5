"""Norms and the cosine of gradients: those of plain autograd, apart where that can be told."""

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


@pytest.mark.parametrize("options", [{}, {"strategy": "independent", "mipd_weight": 3.0}])
@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("scale", [1.0, 256.0])
def test_gradients_are_those_of_autograd(modalities, options, scale):
    game = Game(modalities=modalities, dtype=torch.float64, **options)
    monitor = MCRMonitor(modalities)
    latents, out, _ = game.forward()
    task = cross_entropy(out.logits, game.labels)
    weighted = {
        "grad_task": task,
        "grad_regularizer": out.loss,
        "grad_mipd": game.mcr.mipd_weight * out.mipd,
        "grad_contrastive": game.mcr.contrastive_weight * out.contrastive,
    }
    grads = {
        name: torch.autograd.grad(scale * x, latents, retain_graph=True)
        for name, x in weighted.items()
    }
    monitor.update(out)
    (scale * (task + out.loss)).backward()
    values = monitor.read()
    for m, modality in enumerate(monitor.modalities):
        for name, wanted in grads.items():
            close(values[f"{name}/{modality}"], wanted[m].norm().item())
        of_both = (grads[name][m].flatten() for name in ("grad_task", "grad_regularizer"))
        wanted = torch.cosine_similarity(*of_both, dim=0).item()
        assert values[f"grad_cosine/{modality}"] == pytest.approx(wanted, abs=1e-5)


@needs_library
@pytest.mark.parametrize("way", ["additive", "autocast", "sixteen bits", "weight norm"])
def test_gradients_of_other_linear_fusions(way):
    dtype = torch.bfloat16 if way == "sixteen bits" else torch.float32
    game, monitor = Game(dtype=dtype), MCRMonitor(NAMES)
    if way == "additive":
        game.fusion = mcr_fast.AdditiveFusion.from_linear(game.fusion, [5, 5])
    if way == "weight norm":
        torch.nn.utils.parametrizations.weight_norm(game.fusion)
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        latents, out, _ = game.forward()
    task = cross_entropy(out.logits.float(), game.labels)
    grads = [torch.autograd.grad(x, latents, retain_graph=True) for x in (task, out.loss)]
    monitor.update(out)
    (task + out.loss).backward()
    values, eps = monitor.read(), 2e-2 if latents[0].dtype == torch.bfloat16 else 1e-4
    for m, name in enumerate(NAMES):
        of_task, of_loss = (grad[m].float().flatten() for grad in grads)
        assert values[f"grad_task/{name}"] == pytest.approx(of_task.norm().item(), rel=eps)
        assert values[f"grad_regularizer/{name}"] == pytest.approx(of_loss.norm().item(), rel=eps)
        wanted = torch.cosine_similarity(of_task, of_loss, dim=0).item()
        assert values[f"grad_cosine/{name}"] == pytest.approx(wanted, abs=eps)


@needs_library
@pytest.mark.parametrize("widths", [(5, 5), (5, 3)])
def test_gradients_without_a_contrastive_term(widths):
    torch.manual_seed(0)
    latents = [torch.randn(9, width, requires_grad=True) for width in widths]
    mcr = mcr_fast.MCRLoss(widths, C, contrastive_weight=0.0, strategy="independent")
    out, monitor = mcr(latents, None, fusion=torch.nn.Linear(sum(widths), C)), MCRMonitor(NAMES)
    task = out.logits.square().mean()
    grads = [torch.autograd.grad(x, latents, retain_graph=True) for x in (task, out.loss)]
    monitor.update(out)
    (task + out.loss).backward()
    values = monitor.read()
    for m, name in enumerate(NAMES):
        of_task, of_loss = (grad[m].flatten() for grad in grads)
        close(values[f"grad_task/{name}"], of_task.norm().item())
        close(values[f"grad_regularizer/{name}"], of_loss.norm().item())
        wanted = torch.cosine_similarity(of_task, of_loss, dim=0).item()
        assert values[f"grad_cosine/{name}"] == pytest.approx(wanted, abs=1e-5)


@needs_library
def test_a_contrastive_term_of_embeddings_is_not_apart():
    game, monitor = Game(), MCRMonitor(NAMES)
    latents, out, _ = game.forward(embeddings=[torch.randn(9, 3, requires_grad=True)] * 2)
    monitor.update(out)
    (cross_entropy(out.logits, game.labels) + out.loss).backward()
    values = monitor.read()
    assert values["grad_task/image"] > 0
    assert values["grad_mipd/image"] > 0
    for kind in ("grad_regularizer", "grad_contrastive", "grad_cosine"):
        assert math.isnan(values[f"{kind}/image"])


@needs_library
def test_parts_of_the_regularizer_may_be_used_apart():
    game, monitor = Game(dtype=torch.float64), MCRMonitor(NAMES)
    latents, out, _ = game.forward()
    wanted = torch.autograd.grad(2 * out.mipd, latents, retain_graph=True)
    monitor.update(out)
    (2 * out.mipd).backward()
    values = monitor.read()
    for m, name in enumerate(NAMES):
        close(values[f"grad_mipd/{name}"], wanted[m].norm().item())
        assert values[f"grad_contrastive/{name}"] == 0
        close(values[f"grad_regularizer/{name}"], wanted[m].norm().item())
        assert math.isnan(values[f"grad_task/{name}"])
        assert math.isnan(values[f"grad_cosine/{name}"])


@needs_library
def test_a_gradient_of_zero_has_no_direction():
    game, monitor = Game(contrastive_weight=1e-30, mipd_weight=1e-30), MCRMonitor(NAMES)
    game.mcr.contrastive_weight = game.mcr.mipd_weight = 0.5
    _, out, _ = game.forward()
    monitor.update(out)
    (0.0 * out.loss + out.logits.square().sum()).backward()
    values = monitor.read()
    assert values["grad_regularizer/image"] == 0
    assert values["grad_task/image"] > 0
    assert math.isnan(values["grad_cosine/image"])


def test_other_fusions_have_no_gradient_apart():
    """But the norm of all that the encoder gets back."""
    gate = torch.nn.Linear(5, C)
    game = Game(fusion=lambda latents: gate(latents[0] * latents[1].sigmoid()))
    monitor = MCRMonitor(NAMES)
    latents, out, _ = game.forward()
    task = cross_entropy(out.logits, game.labels)
    wanted = torch.autograd.grad(task + out.loss, latents, retain_graph=True)
    monitor.update(out, latents=latents)
    (task + out.loss).backward()
    values = monitor.read()
    for m, name in enumerate(NAMES):
        close(values[f"grad_norm/{name}"], wanted[m].norm().item())
        for kind in ("grad_task", "grad_regularizer", "grad_cosine"):
            assert math.isnan(values[f"{kind}/{name}"])


@pytest.mark.parametrize("stride", [1, 3])
def test_leaves_that_live_on_have_one_hook(stride):
    """Also when the latents are no encoder's outputs, and the same tensors in every step."""
    game, monitor = Game(), MCRMonitor(NAMES, every=None, stride=stride)
    monitor.watch(game.mcr)
    latents, norms = [z.detach().requires_grad_() for z in game.forward()[0]], []
    monitor.reset()
    for _ in range(7):
        out = game.mcr(latents, game.labels, fusion=game.fusion)
        (grad,) = torch.autograd.grad(out.loss, latents[:1], retain_graph=True)
        monitor._means["norms"].reset()  # that one was heard too
        out.loss.backward()
        assert len(latents[0]._backward_hooks) <= 1
        assert monitor._means["norms"]._at == (monitor.step % stride == 1 or stride == 1)
        norms.append(grad.norm().item())
    close(monitor.read()["grad_norm/image"], norms[-1])
    copy.deepcopy(monitor)
    pickle.dumps(monitor)


def test_norms_of_an_epoch_miss_no_step():
    game, monitor = Game(), MCRMonitor(NAMES, every=2, stride=1)
    norms = []
    for _ in range(5):
        latents, out, _ = game.forward()
        monitor.update(out, latents=latents)
        latents[0].register_hook(lambda grad: norms.append(grad.norm().item()))
        out.loss.backward()
    close(monitor.end_epoch()["grad_norm/image"], sum(norms) / 5)


@needs_library
@pytest.mark.parametrize("contrastive_weight", [1.0, 0.0])
def test_two_monitors_of_one_loss(contrastive_weight):
    """Each hears every backward, whichever way it came to the loss."""
    game = Game(contrastive_weight=contrastive_weight)
    one, other = MCRMonitor(NAMES), MCRMonitor(NAMES)
    one.watch(game.mcr)
    latents, out, _ = game.forward()
    other.update(out, game.labels, latents=latents)
    (cross_entropy(out.logits, game.labels) + out.loss).backward()
    assert one.read()["grad_cosine/image"] == other.read()["grad_cosine/image"]
    close(one.read(), other.read())


@needs_library
def test_the_training_feels_nothing():
    """The same bits with and without the monitor."""
    grads = []
    for watched in (False, True):
        game = Game(seed=3)
        torch.manual_seed(7)
        latents, out, _ = game.forward()
        if watched:
            MCRMonitor(NAMES).update(out, game.labels, latents=latents)
        (cross_entropy(out.logits, game.labels) + out.loss).backward()
        grads.append([p.grad for p in game.encoders.parameters()])
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)
