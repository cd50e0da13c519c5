"""What MCRObjective refuses, and in which words."""

import pytest
import torch
import torch.nn.functional as F
from objectives import LABELS, TARGETS, C, D, N, regularizer, setting
from torch import nn

from mcr_fast import MCRObjective

BAD_OPTIONS = [
    ({"unimodal_weight": [1, 2, 3]}, ValueError, "unimodal_weight must be a number or 2"),
    ({"unimodal_weight": "1"}, TypeError, "unimodal_weight must be a number"),
    ({"unimodal_weight": float("nan")}, ValueError, "unimodal_weight must be finite"),
    ({"task": "segmentation"}, ValueError, "task must be one of 'classification', 'multilabel'"),
    ({"task": "multilabel"}, ValueError, "must have divergence='binary_jsd' for task='multilabel'"),
    ({"task": "regression"}, ValueError, "must have divergence='mse' for task='regression'"),
    ({"label_smoothing": 2}, ValueError, "label_smoothing must be in 0..1"),
    ({"class_weight": [1.0, 2.0]}, ValueError, r"class_weight must have shape \[C\] = \[3\]"),
    (
        {"task": F.l1_loss, "class_weight": [1, 1, 1]},
        ValueError,
        "label_smoothing and class_weight",
    ),
    ({"regression_loss": "huber"}, ValueError, "regression_loss must be one of 'mse', 'l1'"),
    ({"warmup": -1}, ValueError, "warmup must be at least 0"),
    ({"warmup": 2.5}, TypeError, "warmup must be int"),
    ({"window": (3,)}, TypeError, "window must be"),
    ({"window": 3}, TypeError, "window must be"),
    ({"window": (3, 3)}, ValueError, "window must end after it starts"),
    ({"unit": "batch"}, ValueError, "unit must be one of 'step', 'epoch'"),
]


@pytest.mark.parametrize(("options", "kind", "text"), BAD_OPTIONS)
def test_bad_options(options, kind, text):
    with pytest.raises(kind, match=text):
        MCRObjective(regularizer(), **options)


def test_loss_must_be_one():
    with pytest.raises(TypeError, match="loss must be an MCRLoss, got Linear"):
        MCRObjective(nn.Linear(1, 1))


BAD_CALLS = [
    ({"labels": LABELS[:-1]}, ValueError, r"labels must be \[N\] = \[6\] class numbers or"),
    ({"labels": LABELS.double()}, ValueError, "labels must be .* for task='classification'"),
    ({"labels": LABELS + 1}, ValueError, r"labels must be in 0..2, or -100"),
    ({"labels": None}, TypeError, "labels must be a tensor"),
    ({"unimodal_heads": nn.Linear(D, C)}, TypeError, "unimodal_heads must be a list of 2"),
    ({"unimodal_heads": [nn.Linear(D, C)]}, ValueError, "unimodal_heads must hold 2 heads"),
    ({"unimodal_heads": [3, 4]}, TypeError, r"unimodal_heads\[0\] must be callable, got int"),
    (
        {"unimodal_heads": [nn.Identity(), nn.Identity()]},
        ValueError,
        r"unimodal_heads\[0\] must return logits \[N, C\] = \[6, 3\]",
    ),
    ({"latents": []}, ValueError, "latents must hold"),
    ({"speed": 3}, TypeError, "speed"),
]


@pytest.mark.parametrize("window", [None, (9, None)])
@pytest.mark.parametrize(("given", "kind", "text"), BAD_CALLS)
def test_bad_calls(given, kind, text, window):
    fusion, latents, own = setting()
    call = {"latents": latents, "labels": LABELS, "fusion": fusion, "unimodal_heads": own} | given
    with pytest.raises(kind, match=text):
        MCRObjective(regularizer(), window=window)(**call)


@pytest.mark.parametrize(
    ("options", "needed_by"),
    [
        ({"exclude": "same_label"}, "exclude='same_label'"),
        ({"ceb_weight": 1.0, "ceb_source": "labels"}, "ceb_source='labels'"),
    ],
)
def test_labels_that_the_regularizer_needs(options, needed_by):
    fusion, latents, own = setting()
    objective = MCRObjective(regularizer("multilabel", **options), task="multilabel")
    with pytest.raises(ValueError, match=f"contrastive_labels must be given.*{needed_by}"):
        objective(latents, TARGETS["multilabel"], fusion=fusion, unimodal_heads=own)
    out = objective(
        latents,
        TARGETS["multilabel"],
        fusion=fusion,
        unimodal_heads=own,
        contrastive_labels=LABELS,
    )
    assert out.loss.isfinite()


def test_regression_labels_of_another_shape_do_not_broadcast():
    fusion, latents, own = setting()
    objective = MCRObjective(regularizer("regression"), task="regression", share_labels=True)
    for labels in (torch.randn(N), torch.randn(N, 1), torch.randn(1, C)):
        with pytest.raises(ValueError, match=r"labels must be \[N, C\] = \[6, 3\]"):
            objective(latents, labels, fusion=fusion, unimodal_heads=own)
    with pytest.raises(ValueError, match=r"labels must be \[N\] or \[N, 1\] for share_labels=True"):
        objective(latents, TARGETS["regression"], fusion=fusion, unimodal_heads=own)
