"""The op that makes all terms of `MCRLoss` with a linear fusion: as the terms one by one."""

import itertools
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from contrastive import needs_library
from divergences import assert_same_bits
from tiers import sample
from torch import nn
from torch.nn.functional import cross_entropy

import mcr_fast
from mcr_fast.mipd.known import KnownForms
from mcr_fast.ops.regularizer import regularizer

pytestmark = needs_library
D, C = 5, 4

OPTIONS = (
    {},
    {"strategy": "independent", "clean_path": "routed", "contrastive": "sup_con"},
    {"strategy": "collaborative", "exclude": "self", "ceb_weight": 0.5, "contrastive_weight": 0.3},
    {"clean_path": "detached", "divergence": "mse", "exclude": "same_label"},
)


def task(logits):
    return cross_entropy(logits, torch.arange(len(logits)) % C)


LOSSES = {
    "loss": lambda out: out.loss,
    "with the task": lambda out: out.loss + task(out.logits),
    "terms": lambda out: 2 * out.mipd + 0.3 * out.contrastive + out.logits.sin().sum(),
    "logits": lambda out: out.logits.square().sum(),
}  # fmt: skip


class Step:
    """One step of `MCRLoss`, in one op or in several."""

    def __init__(self, rows=7, modalities=2, dtype=torch.float32, bias=True, seed=0, **options):
        torch.manual_seed(seed)
        self.latents = [torch.randn(rows, D, dtype=dtype) for _ in range(modalities)]
        self.fusion = nn.Linear(modalities * D, C, bias=bias, dtype=dtype)
        widths = [D] * modalities
        self.mcr = mcr_fast.MCRLoss(widths, C, num_permutations=3, **options).to(dtype)
        self.labels = torch.arange(rows) % 3
        self.present = self.sample_weight = None
        for z in self.latents:
            z.requires_grad_()

    def leaves(self):
        return [*self.latents, *self.fusion.parameters()]

    def run(self, at_once=True):
        """The step; and whether it was one op."""
        torch.manual_seed(5)
        given = {"present": self.present, "sample_weight": self.sample_weight}
        without = mock.patch.multiple(self.mcr, _at_once=lambda *_: None, _known=KnownForms())
        op = mock.Mock(side_effect=regularizer)
        with (
            nullcontext() if at_once else without,
            mock.patch("mcr_fast.mipd.evaluate.regularizer", op),
            mock.patch("mcr_fast._terms.regularizer", op),
        ):
            out = self.mcr(self.latents, self.labels, fusion=self.fusion, **given)
        assert op.called == at_once
        return out


CASES = list(
    itertools.product(
        (torch.float32, torch.float64), (2, 3), (7, 0, 1, 2, 33), OPTIONS, (False, True)
    )
)


@pytest.mark.parametrize(("dtype", "modalities", "rows", "options", "masked"), sample(CASES, 7))
def test_is_the_terms_one_by_one(dtype, modalities, rows, options, masked):
    if masked and options.get("ceb_weight"):
        options = {**options, "ceb_source": "labels"}
    step = Step(rows, modalities, dtype, bias=not masked, **options)
    if masked:
        step.present = torch.rand(rows, modalities) < 0.8
        step.sample_weight = torch.rand(rows, dtype=dtype)
    bound = {"rtol": 2e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-10}
    for loss in LOSSES.values():
        results = []
        for at_once in (True, False):
            out = step.run(at_once)
            grads = torch.autograd.grad(loss(out), step.leaves(), allow_unused=True)
            results.append([*out, *grads])
        for ours, expected in zip(*results, strict=True):
            assert (ours is None) == (expected is None)
            if ours is not None:
                torch.testing.assert_close(
                    ours, expected, equal_nan=True, **({"atol": 1e-12} | bound)
                )


def test_nan_labels_equal_none_of_another_modality():
    step = Step()
    step.labels = torch.tensor([0.0, 1.0, torch.nan, 0.0, 1.0, torch.nan, 2.0])
    expected = mcr_fast.functional.nt_xent(step.latents, step.labels, backend="reference")
    out = step.mcr(step.latents, step.labels, fusion=step.fusion)
    torch.testing.assert_close(out.contrastive, expected)


def test_instance_labels():
    step = Step()
    step.labels = None
    torch.testing.assert_close(step.run(True)[:4], step.run(False)[:4])


def test_one_node():
    out = Step().run()
    assert out.loss.grad_fn is out.mipd.grad_fn is out.contrastive.grad_fn is out.logits.grad_fn
    assert not out.divergences.requires_grad
    assert not out.importance.requires_grad


@pytest.mark.parametrize("left_out", range(4))
def test_only_what_is_wanted_gets_a_gradient(left_out):
    step = Step()
    leaves = step.leaves()
    everything = torch.autograd.grad(step.run().loss, leaves)
    leaves.pop(left_out).requires_grad_(False)
    wanted = [g for at, g in enumerate(everything) if at != left_out]
    assert_same_bits(torch.autograd.grad(step.run().loss, leaves), wanted)


def test_a_penalty_on_the_tasks_gradient():
    """The logits are the task's: their gradient can be differentiated again."""
    results = []
    for at_once in (True, False):
        step = Step(dtype=torch.float64)
        out = step.run(at_once)
        task = cross_entropy(out.logits, step.labels)
        grads = torch.autograd.grad(task, step.latents, create_graph=True)
        penalty = sum(g.square().sum() for g in grads)
        results.append(torch.autograd.grad(penalty + task, step.leaves()))
    torch.testing.assert_close(*results)


def test_the_regularizer_cannot_be_differentiated_twice():
    step = Step()
    out = step.run()
    for value in (out.loss, out.loss + out.logits.sum()):
        grads = torch.autograd.grad(value, step.latents, create_graph=True)
        with pytest.raises(RuntimeError, match="regularizer cannot be differentiated twice"):
            sum(g.square().sum() for g in grads).backward(retain_graph=True)


def test_a_term_that_is_not_wanted_adds_nothing():
    """Whatever its gradient is."""
    bwd, nan = torch.ops.mcr_fast.regularizer_bwd, torch.tensor(torch.nan)
    latents, weight = [torch.randn(3, D) for _ in range(2)], torch.randn(C, 2 * D)
    units = torch.randn(2, 3, C), torch.randn(C), torch.randn(6, D)
    rest = (0.1, 1.0, [1, 1, 1], latents, weight)
    one, grad_logits = torch.ones(()), torch.randn(3, C)
    for given, spoilt in (
        ((None, None, None, grad_logits), (0, 1, 2)),
        ((None, one, None, None), (2,)),
        ((None, None, one, None), (0, 1)),
    ):
        bad = [nan.expand_as(u).clone() if at in spoilt else u for at, u in enumerate(units)]
        (*grads, grad_weight, grad_bias) = bwd(*given, *bad, *rest)
        (*expected, expected_weight, expected_bias) = bwd(*given, *units, *rest)
        assert_same_bits([*grads[0], grad_weight, grad_bias],
                         [*expected[0], expected_weight, expected_bias])  # fmt: skip


NOT_AT_ONCE = {
    "no contrastive term": ({"contrastive_weight": 0.0}, {}),
    "no divergence": ({"mipd_weight": 0.0}, {}),
    "logits that are known": ({}, {"logits": torch.zeros(7, C)}),
    "embeddings": ({}, {"embeddings": [torch.randn(7, 3) for _ in range(2)]}),
    "the reference": ({"backend": "reference"}, {}),
}


@pytest.mark.parametrize("name", NOT_AT_ONCE)
def test_other_steps_are_made_of_several_ops(name):
    options, given = NOT_AT_ONCE[name]
    step = Step(**options)
    with mock.patch("mcr_fast.mipd.evaluate.regularizer", side_effect=regularizer) as op:
        step.mcr(step.latents, step.labels, fusion=step.fusion, **given)
    assert not op.called


@pytest.mark.parametrize("options", [{}, {"ceb_weight": 0.5, "ceb_source": "labels"}])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sixteen_bits(dtype, autocast, options):
    """The op computes in float32, the logits and the gradients have the dtypes of a call."""
    step = Step(dtype=dtype, **options)
    if autocast:
        step.fusion.float()
        step.mcr.float()
    results = []
    for at_once in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = step.run(at_once)
        called = torch.bfloat16 if autocast else dtype
        assert out.logits.dtype == called
        assert out.loss.dtype == torch.float32
        loss = out.loss + task(out.logits.float())
        results.append([*out, *torch.autograd.grad(loss, step.leaves())])
    for ours, expected in zip(*results, strict=True):
        eps = torch.finfo(ours.dtype).eps
        torch.testing.assert_close(ours, expected, rtol=8 * eps, atol=8 * eps)
