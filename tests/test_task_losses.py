"""The task losses of MCRObjective in one op: against torch's functions, and when it is taken."""

import copy

import pytest
import torch
import torch.nn.functional as F
from contrastive import needs_library
from torch import nn

import mcr_fast.objective
from mcr_fast import MCRLoss, MCRObjective

pytestmark = needs_library
N, C, D, WEIGHTS = 7, 5, 12, (3.0, 0.5)
VALUES = ("loss", "task", "unimodal")


def setting(bias=True, num_rows=N):
    """An objective, and what it is called with."""
    torch.manual_seed(0)
    latents = [torch.randn(num_rows, D).requires_grad_() for _ in WEIGHTS]
    fusion = nn.Linear(2 * D, C)
    heads = nn.ModuleList([nn.Linear(D, C, bias=bias) for _ in WEIGHTS])
    labels = torch.randint(0, C, (num_rows,))
    regularizer = MCRLoss([D] * 2, C, num_permutations="all")
    objective = MCRObjective(regularizer, unimodal_weight=WEIGHTS, warmup=4)
    return objective, latents, labels, {"fusion": fusion, "unimodal_heads": heads}


def at_once(out):
    """Whether one op made the task losses and their sum."""
    return out.task.grad_fn is out.loss.grad_fn


def by_hand(objective, latents, labels, given, dtype):
    """The three values, what they are functions of, and the logits, in torch's operations."""
    loss = copy.deepcopy(objective.loss)
    fusion, heads = (copy.deepcopy(x).to(dtype) for x in given.values())
    latents = [z.detach().to(dtype).requires_grad_() for z in latents]
    others = -200 - torch.arange(len(labels))
    out = loss(latents, torch.where(labels == -100, others, labels), fusion=fusion)
    logits = [head(z) for head, z in zip(heads, latents, strict=True)]
    unimodal = torch.stack([F.cross_entropy(x, labels) for x in logits])
    task = F.cross_entropy(out.logits, labels)
    weights = torch.tensor(WEIGHTS, dtype=dtype)
    values = (task + (weights * unimodal).sum() + 0.25 * out.loss, task, unimodal)
    return values, [*latents, *fusion.parameters(), *heads.parameters()], logits


def gradients(value, leaves):
    """With zeros of what it is no function of."""
    grads = torch.autograd.grad(value.sum(), leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("missing", [0, 2])
def test_values_and_gradients(bias, missing):
    objective, latents, labels, given = setting(bias)
    labels[:missing] = -100
    out = objective(latents, labels, **given)
    assert at_once(out)
    values, leaves, logits = by_hand(objective, latents, labels, given, torch.float64)
    plain, of_plain, _ = by_hand(objective, latents, labels, given, torch.float32)
    ours = [*latents, *given["fusion"].parameters(), *given["unimodal_heads"].parameters()]
    for name, truth, other in zip(VALUES, values, plain, strict=True):
        found = [getattr(out, name), *gradients(getattr(out, name), ours)]
        wanted = [truth, *gradients(truth, leaves)]
        theirs = [other, *gradients(other, of_plain)]
        for x, y, z in zip(found, wanted, theirs, strict=True):
            worst, scale = (z.double() - y).abs().max(), y.abs().max()
            bound = 2 * worst + 4 * torch.finfo(torch.float32).eps * scale
            assert (x.double() - y).abs().max() <= bound, name
    for x, y in zip(out.unimodal_logits, logits, strict=True):
        torch.testing.assert_close(x.double(), y, atol=1e-5, rtol=1e-5)
    assert torch.equal(out.loss, objective_again(objective, latents, labels, given).loss)


def objective_again(objective, latents, labels, given):
    objective.schedule.set(0, 0, 0)
    return objective(latents, labels, **given)


def test_what_nothing_was_done_with_gets_no_gradient():
    objective, latents, labels, given = setting()
    out = objective(latents, labels, **given)
    heads = [*given["unimodal_heads"].parameters()]
    grads = torch.autograd.grad(out.task, heads, retain_graph=True, allow_unused=True)
    assert grads == (None,) * len(heads)
    fusion = [*given["fusion"].parameters()]
    grads = torch.autograd.grad(out.unimodal.sum(), fusion, allow_unused=True)
    assert grads == (None,) * len(fusion)


def test_no_row_with_a_label_is_nan_as_of_torch():
    objective, latents, labels, given = setting()
    out = objective(latents, torch.full_like(labels, -100), **given)
    assert at_once(out)
    assert out.task.isnan()
    assert out.unimodal.isnan().all()
    grads = torch.autograd.grad(out.task, latents)
    assert all(not g.any() for g in grads)


@pytest.mark.parametrize("bias", [True, False])
def test_a_penalty_on_gradients(bias):
    """Of all but the regularizer's own part there are second derivatives."""
    objective, latents, labels, given = setting(bias)
    leaves = [*latents, *given["fusion"].parameters(), *given["unimodal_heads"].parameters()]

    def penalty(out):
        value = out.task + out.unimodal[1] + out.unimodal_logits[0].square().sum()
        grads = torch.autograd.grad(value, latents, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)

    out = objective(latents, labels, **given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mcr_fast.objective, "losses_at_once", lambda *_: None)
        apart = objective(latents, labels, **given)
    assert at_once(out)
    assert not at_once(apart)
    torch.testing.assert_close(penalty(out), penalty(apart), atol=1e-6, rtol=1e-5)
    whole = objective(latents, labels, **given).loss
    grads = torch.autograd.grad(whole, latents, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        sum(g.square().sum() for g in grads).backward()


def test_second_derivatives_want_the_logits_as_they_were():
    objective, latents, labels, given = setting()
    out = objective(latents, labels, **given)
    with torch.no_grad():
        out.logits.zero_()
    out.loss.backward(retain_graph=True)  # which reads none
    with pytest.raises(RuntimeError, match="modified in place"):
        torch.autograd.grad(out.task, latents, create_graph=True)


def test_batched_gradients_of_the_heads():
    objective, latents, labels, given = setting()
    out = objective(latents, labels, **given)
    each = torch.eye(2)
    batched = torch.autograd.grad(
        out.unimodal, latents, each, retain_graph=True, is_grads_batched=True
    )
    for m, unit in enumerate(each):
        one = torch.autograd.grad(out.unimodal, latents, unit, retain_graph=True)
        torch.testing.assert_close([x[m] for x in batched], list(one))


def hooked(objective, given):
    seen = []
    given["unimodal_heads"][1].register_forward_hook(lambda *_: seen.append(1))
    return seen


def hooked_task(objective, given):
    seen = []
    objective.task_loss.register_forward_hook(lambda *_: seen.append(1))
    return seen


def called(objective, given):
    seen, (first, second) = [], given["unimodal_heads"]

    def head(z):
        seen.append(1)
        return second(z)

    given["unimodal_heads"] = [first, head]
    return seen


@pytest.mark.parametrize("change", [hooked, hooked_task, called])
def test_what_takes_part_in_a_call_is_called(change):
    objective, latents, labels, given = setting()
    seen = change(objective, given)
    out = objective(latents, labels, **given)
    assert seen
    assert not at_once(out)


@pytest.mark.parametrize(
    "masks", [{"sample_weight": torch.ones(N)}, {"present": torch.ones(N, 2, dtype=torch.bool)}]
)
def test_masks_are_not_left_out(masks):
    objective, latents, labels, given = setting()
    assert not at_once(objective(latents, labels, **given, **masks))


def test_large_batches_take_torchs_vectors():
    objective, latents, labels, given = setting(num_rows=2000)
    assert not at_once(objective(latents, labels, **given))


def test_labels_out_of_range_are_named():
    objective, latents, labels, given = setting()
    labels[2] = C
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.4"):
        objective(latents, labels, **given)
    parts = [*latents, *(head.weight for head in given["unimodal_heads"])]
    rest = (torch.zeros(()), parts, labels, [1.0, 1.0], 1.0)
    with pytest.raises(RuntimeError, match=r"labels must be in 0\.\.4"):
        torch.ops.mcr_fast.task_losses_fwd(torch.zeros(N, C), *rest)
