"""MCRObjective is Algorithm 1, done by hand, for every task; its weights and masks."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs import make_latents
from objectives import LABELS, LOSS_OF, TABLE, TARGETS, C, D, N, heads, pooled, regularizer, setting
from torch import nn

import mcr_fast
from mcr_fast import MCRLoss, MCRObjective


@pytest.mark.parametrize("task", LOSS_OF)
@pytest.mark.parametrize("kind", ["linear", "additive_head", "transformer"])
def test_is_algorithm_1_by_hand(kind, task):
    fusion, latents, own = setting(kind, 3)
    loss, target, weights = regularizer(task, 3), TARGETS[task], (1.0, 0.5, 3.0)
    objective = MCRObjective(loss, unimodal_weight=weights, task=task)
    out = objective(latents, target, fusion=fusion, unimodal_heads=own, permutations=TABLE)
    compared = target if task == "classification" else None
    hand = loss(latents, compared, fusion=fusion, permutations=TABLE)
    unimodal = [LOSS_OF[task](h(pooled(z)), target) for h, z in zip(own, latents, strict=True)]
    total = LOSS_OF[task](hand.logits, target) + hand.loss
    total = total + sum(w * u for w, u in zip(weights, unimodal, strict=True))
    torch.testing.assert_close(out.loss, total)
    torch.testing.assert_close(out.unimodal, torch.stack(unimodal))
    for name in mcr_fast.MCROutput._fields[1:]:
        torch.testing.assert_close(getattr(out, name), getattr(hand, name))
    leaves = [*latents, *fusion.parameters(), *own.parameters()]
    ours, expected = (torch.autograd.grad(x, leaves, allow_unused=True) for x in (out.loss, total))
    torch.testing.assert_close(ours, expected)


def test_one_weight_for_all_and_none():
    fusion, latents, own = setting()
    objective = MCRObjective(regularizer(), unimodal_weight=2)
    assert objective.unimodal_weight == (2.0, 2.0)
    out = objective(latents, LABELS, fusion=fusion, unimodal_heads=own, permutations=TABLE)
    objective.unimodal_weight = 0
    without = objective(latents, LABELS, fusion=fusion, unimodal_heads=own, permutations=TABLE)
    torch.testing.assert_close(out.loss - without.loss, 2 * out.unimodal.sum())
    assert without.unimodal.tolist() == [0, 0]
    assert without.unimodal_logits == (None, None)
    torch.testing.assert_close(out.unimodal_logits[1], own[1](latents[1]))


@pytest.mark.parametrize(
    "weights", [(1, 2), [1.0, 2.0], np.array([1, 2]), torch.tensor([1.0, 2.0])]
)
def test_weights_of_any_library(weights):
    assert MCRObjective(regularizer(), unimodal_weight=weights).unimodal_weight == (1.0, 2.0)
    one = MCRObjective(regularizer(), unimodal_weight=weights[1])
    assert one.unimodal_weight == (2.0, 2.0)
    assert all(type(weight) is float for weight in one.unimodal_weight)


def test_class_weights_follow_the_logits():
    """An objective may have no parameter, and so nobody moves it."""
    objective = MCRObjective(regularizer(), class_weight=[1.0, 2.0, 3.0])
    latents = [torch.randn(N, D, device="meta") for _ in range(2)]
    own, fusion = heads().float().to("meta"), nn.Linear(2 * D, C, device="meta")
    out = objective(latents, LABELS.to("meta"), fusion=fusion, unimodal_heads=own)
    assert out.loss.device.type == "meta"


def test_one_modality_may_have_no_head():
    fusion, latents, own = setting()
    objective = MCRObjective(regularizer())
    out = objective(latents, LABELS, fusion=fusion, unimodal_heads=[own[0], None])
    assert out.unimodal[1] == 0
    torch.testing.assert_close(out.unimodal[0], F.cross_entropy(own[0](latents[0]), LABELS))


def test_warns_once_of_no_heads():
    fusion, latents, _ = setting()
    objective = MCRObjective(regularizer())
    with pytest.warns(UserWarning, match="no unimodal_heads") as caught:
        objective(latents, LABELS, fusion=fusion)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective(latents, LABELS, fusion=fusion)
        MCRObjective(regularizer(), unimodal_weight=0)(latents, LABELS, fusion=fusion)


def test_given_logits_and_embeddings_pass_through():
    fusion, latents, own = setting("gated")
    embeddings = make_latents(8, 2, N, 5)
    logits = fusion(latents)
    given = {"logits": logits, "embeddings": embeddings, "permutations": TABLE}
    out = MCRObjective(regularizer())(latents, LABELS, fusion=fusion, unimodal_heads=own, **given)
    assert out.logits is logits
    expected = mcr_fast.functional.nt_xent(embeddings, LABELS)
    torch.testing.assert_close(out.contrastive, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_label_smoothing_and_class_weights_pass_through(weighted, smoothing):
    fusion, latents, own = setting()
    weight = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64) if weighted else None
    options = {"label_smoothing": smoothing, "class_weight": weight}
    out = MCRObjective(regularizer(), **options)(latents, LABELS, fusion=fusion, unimodal_heads=own)
    how = {"label_smoothing": smoothing, "weight": weight}
    assert torch.equal(out.task, F.cross_entropy(out.logits, LABELS, **how))
    assert torch.equal(out.unimodal[0], F.cross_entropy(own[0](latents[0]), LABELS, **how))
    ones = torch.ones(N, dtype=torch.float64)
    again = MCRObjective(regularizer(), **options)(
        latents, LABELS, fusion=fusion, unimodal_heads=own, sample_weight=ones
    )
    torch.testing.assert_close(again.task, out.task)
    multilabel = MCRObjective(regularizer("multilabel"), task="multilabel", **options)
    targets = TARGETS["multilabel"]
    out = multilabel(latents, targets, fusion=fusion, unimodal_heads=own)
    smooth = targets * (1 - smoothing) + smoothing / 2
    expected = F.binary_cross_entropy_with_logits(out.logits, smooth, weight=weight)
    torch.testing.assert_close(out.task, expected)


@pytest.mark.parametrize("task", LOSS_OF)
def test_rows_without_a_modality_do_not_count_in_its_loss(task):
    fusion, latents, own = setting()
    present = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 1], [1, 0], [1, 1]], dtype=torch.bool)
    weight = torch.tensor([1.0, 2.0, 0.5, 0.0, 1.0, 3.0], dtype=torch.float64)
    objective = MCRObjective(regularizer(task), task=task)
    target = TARGETS[task]
    for sample_weight in (None, weight):
        masks = {"present": present, "sample_weight": sample_weight}
        out = objective(latents, target, fusion=fusion, unimodal_heads=own, **masks)
        rows = torch.ones(N, dtype=torch.float64) if sample_weight is None else sample_weight
        for m in range(2):
            losses = LOSS_OF[task](own[m](latents[m]), target, reduction="none")
            losses = losses if losses.ndim == 1 else losses.mean(1)
            kept = rows * present[:, m]
            torch.testing.assert_close(out.unimodal[m], (kept * losses).sum() / kept.sum())
        losses = LOSS_OF[task](out.logits, target, reduction="none")
        losses = losses if losses.ndim == 1 else losses.mean(1)
        torch.testing.assert_close(out.task, (rows * losses).sum() / rows.sum())


def test_what_is_in_missing_rows_reaches_nobody():
    fusion, latents, own = setting()
    present = torch.ones(N, 2, dtype=torch.bool)
    present[1:, 1] = False
    with torch.no_grad():
        latents[1][2] = torch.nan
    objective = MCRObjective(regularizer(mipd_weight=0.0, contrastive_weight=0.0))
    out = objective(
        [z.nan_to_num() if m == 0 else z for m, z in enumerate(latents)],
        LABELS,
        fusion=lambda latents: fusion(torch.cat([latents[0], latents[1].nan_to_num()], 1)),
        unimodal_heads=own,
        present=present,
    )
    grads = torch.autograd.grad(out.loss, [*own.parameters()])
    assert all(g.isfinite().all() for g in grads)


def test_no_row_at_all():
    fusion, latents, own = setting()
    present = torch.zeros(N, 2, dtype=torch.bool)
    objective = MCRObjective(regularizer())
    out = objective(latents, LABELS, fusion=fusion, unimodal_heads=own, present=present)
    assert out.unimodal.tolist() == [0, 0]
    assert all(not g.any() for g in torch.autograd.grad(out.unimodal.sum(), own.parameters()))
    empty = [z.detach()[:0].requires_grad_() for z in latents]
    out = objective(empty, LABELS[:0], fusion=fusion, unimodal_heads=own)
    assert out.loss == 0
    out.loss.backward()
    assert all(not p.grad.any() for p in own.parameters())


def test_rows_without_a_label():
    fusion, latents, own = setting()
    labels = LABELS.clone()
    labels[0] = -100
    objective = MCRObjective(regularizer())
    given = {"fusion": fusion, "unimodal_heads": own}
    out = objective(latents, labels, **given)
    torch.testing.assert_close(out.task, F.cross_entropy(out.logits[1:], labels[1:]))
    weighted = objective(latents, labels, **given, sample_weight=torch.ones(N).double())
    torch.testing.assert_close(weighted.task, out.task)
    assert objective(latents, labels.to(torch.int32), **given).task == out.task


def test_rows_of_the_class_that_is_minus_100_in_uint8():
    task = MCRObjective(MCRLoss([D, D], 200)).task_loss
    labels, weight = torch.tensor([156, 3, 156], dtype=torch.uint8), torch.tensor([1.0, 2.0, 3.0])
    logits = torch.randn(3, 200)
    rows = F.cross_entropy(logits, labels.long(), reduction="none")
    torch.testing.assert_close(task(logits, labels, weight), (weight * rows).sum() / 6)


# Labels that the regularizer compares rows by


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8])
def test_rows_without_a_label_are_like_no_other(dtype):
    fusion, latents, own = setting()
    labels, apart = LABELS.clone(), LABELS.clone()
    if dtype != torch.uint8:  # where -100 is a class
        labels[[1, 4]], apart[[1, 4]] = -100, torch.tensor([7, 8])
    loss = regularizer(exclude="same_label", contrastive="sup_con")
    given = {"fusion": fusion, "unimodal_heads": own, "permutations": TABLE}
    out = MCRObjective(loss)(latents, labels.to(dtype), **given)
    expected = loss(latents, apart, fusion=fusion, permutations=TABLE)
    for name in ("contrastive", "divergences", "mipd"):
        torch.testing.assert_close(getattr(out, name), getattr(expected, name))


def test_rows_without_a_label_have_no_one_hot_vector():
    fusion, latents, own = setting()
    labels = LABELS.clone()
    labels[1] = -100
    objective = MCRObjective(regularizer(ceb_weight=1.0, ceb_source="labels")).double()
    given = {"fusion": fusion, "unimodal_heads": own}
    with pytest.raises(ValueError, match=r"no -100 for ceb_source='labels'.*contrastive_labels="):
        objective(latents, labels, **given)
    objective(latents, labels, **given, contrastive_labels=LABELS)


def contrastive(objective, labels, **given):
    fusion, latents, own = setting()
    out = objective(latents, labels, fusion=fusion, unimodal_heads=own, **given)
    return out.contrastive, latents


def test_labels_that_are_no_class_numbers_are_not_compared():
    nt_xent = mcr_fast.functional.nt_xent
    for task in ("multilabel", "regression"):
        found, latents = contrastive(
            MCRObjective(regularizer(task), task=task), TARGETS[task], contrastive_labels=LABELS
        )
        torch.testing.assert_close(found, nt_xent(latents, LABELS))
        found, latents = contrastive(MCRObjective(regularizer(task), task=task), TARGETS[task])
        torch.testing.assert_close(found, nt_xent(latents))
    soft = F.one_hot(LABELS, C).double()
    found, latents = contrastive(MCRObjective(regularizer()), soft)
    torch.testing.assert_close(found, nt_xent(latents))
    found, latents = contrastive(MCRObjective(regularizer(), share_labels=False), LABELS)
    torch.testing.assert_close(found, nt_xent(latents))


def test_labels_of_regression_are_compared_if_asked():
    loss = MCRLoss([D, D], 1, divergence="mse")
    objective = MCRObjective(loss, task="regression", regression_loss="l1", share_labels=True)
    fusion, own = nn.Linear(2 * D, 1).double(), [nn.Linear(D, 1).double() for _ in range(2)]
    latents, labels = make_latents(2, 2, N, D), torch.tensor([0.5, 1, 0.5, 1, 2, 2]).double()
    for y in (labels, labels[:, None]):
        out = objective(latents, y, fusion=fusion, unimodal_heads=own)
        torch.testing.assert_close(out.contrastive, mcr_fast.functional.nt_xent(latents, labels))
        torch.testing.assert_close(out.task, F.l1_loss(out.logits[:, 0], labels))


def test_a_callable_task():
    fusion, latents, own = setting()

    def focal(logits, labels):
        return F.cross_entropy(logits, labels, reduction="none").square()

    given = {"fusion": fusion, "unimodal_heads": own, "permutations": TABLE}
    weight = torch.rand(N, dtype=torch.float64)
    out = MCRObjective(regularizer(), task=focal)(latents, LABELS, **given, sample_weight=weight)
    rows = focal(out.logits, LABELS)
    torch.testing.assert_close(out.task, (weight * rows).sum() / weight.sum())
    torch.testing.assert_close(out.contrastive, mcr_fast.functional.nt_xent(latents, LABELS))
    mean = MCRObjective(regularizer(), task=lambda logits, labels: focal(logits, labels).mean())
    out = mean(latents, LABELS, **given)
    torch.testing.assert_close(out.task, rows.mean())
    with pytest.raises(ValueError, match=r"one loss a row, \[N\], for sample_weight"):
        mean(latents, LABELS, **given, sample_weight=weight)
    # labels of any form, which nothing compares
    dictionary = MCRObjective(regularizer(), task=lambda logits, y: focal(logits, y["label"]))
    out = dictionary(latents, {"label": LABELS}, **given)
    torch.testing.assert_close(out.contrastive, mcr_fast.functional.nt_xent(latents))


# Modes


def test_autocast():
    fusion, latents, own = (x.float() if isinstance(x, nn.Module) else x for x in setting())
    latents = [z.detach().float().requires_grad_() for z in latents]
    objective = MCRObjective(regularizer(num_permutations="all"), warmup=7)
    exact = objective(latents, LABELS, fusion=fusion, unimodal_heads=own)
    objective.schedule.set(0, 0, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = objective(latents, LABELS, fusion=fusion, unimodal_heads=own)
    assert out.loss.dtype == out.task.dtype == out.unimodal.dtype == torch.float32
    assert out.unimodal_logits[0].dtype == torch.bfloat16
    torch.testing.assert_close(out.loss, exact.loss, rtol=0.02, atol=0.02)
    out.loss.backward()


def test_copies_and_pickles():
    objective = MCRObjective(
        regularizer(ceb_weight=1.0), warmup=5, class_weight=[1, 2, 3], unimodal_weight=(1, 2)
    )
    objective.schedule.count()
    for copied in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert copied.regularizer_weight == objective.regularizer_weight == 0.4
        assert copied.unimodal_weight == (1, 2)
        assert repr(copied) == repr(objective)


def test_scripting_is_refused():
    with pytest.raises(RuntimeError, match="MCRObjective cannot be compiled by torch.jit.script"):
        torch.jit.script(MCRObjective(regularizer()))
