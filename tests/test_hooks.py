"""Gradient hooks see one gradient a backward, on the whole sum, and nothing before it."""

from collections import Counter

import pytest
import torch
from called import ROUTINGS, ROWS, mcr, table_of
from inputs import make_fusion, make_latents
from torch import nn

WAYS = ("linear", "additive", "additive_head", "gated", "transformer")


def loss_of(routing):
    return mcr(strategy=routing[0], clean_path=routing[1], chunk_rows=4)


@pytest.mark.parametrize("routing", ROUTINGS, ids="-".join)
@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("kind", WAYS)
def test_tensor_hooks_act_once_on_the_whole_sum(kind, closure, routing):
    results, calls = [], []
    for hooked in (False, True):
        case = make_fusion(kind, 1, 2)
        latents = [z * 1.0 for z in make_latents(2, 2, ROWS, length=case.length)]
        tensors = [*latents, *case.fusion.parameters()]
        for z in latents:
            z.retain_grad()
        for at, x in enumerate(tensors if hooked else ()):
            x.register_hook(lambda g, at=at: calls.append(at) or g.sign())
        fusion = case.fusion
        if closure:
            fusion = lambda z, f=fusion: f(torch.cat(z, 1) if kind == "linear" else z)  # noqa: E731
        out = loss_of(routing)(latents, None, fusion=fusion, permutations=table_of())
        (out.loss + out.logits.square().sum()).backward()
        results.append([torch.zeros_like(x) if x.grad is None else x.grad for x in tensors])
    assert len(set(calls)) == len(calls)
    torch.testing.assert_close(results[1], [g.sign() for g in results[0]])


@pytest.mark.parametrize("routing", ROUTINGS, ids="-".join)
@pytest.mark.parametrize("kind", WAYS)
def test_no_hook_is_called_before_the_backward_or_twice(kind, routing):
    case = make_fusion(kind, 1, 2)
    latents = make_latents(2, 2, ROWS, length=case.length)
    seen = []
    for x in [*latents, *case.fusion.parameters()]:
        x.register_hook(lambda g: seen.append("tensor"))
        x.register_post_accumulate_grad_hook(lambda x: seen.append("accumulated"))
    inside = [
        (name, module)
        for name, module in case.fusion.named_modules()
        if name and not isinstance(module, nn.ModuleList)
    ]
    for name, module in inside:
        module.register_full_backward_hook(lambda m, i, o, name=name: seen.append(name))
        module.register_full_backward_pre_hook(lambda m, o, name=name: seen.append(f"{name} pre"))
    out = loss_of(routing)(latents, None, fusion=case.fusion, permutations=table_of())
    assert seen == []
    (out.loss + out.logits.sum()).backward()
    count = Counter(seen)
    tensors = len(latents) + len(list(case.fusion.parameters()))
    assert count.pop("accumulated") == count.pop("tensor") == tensors
    if kind in ("additive_head", "gated"):
        assert set(count) == {name + end for name, _ in inside for end in ("", " pre")}
        assert set(count.values()) == {1}


def test_full_backward_hooks_on_projections_may_change_gradients():
    results = []
    for scale in (1.0, 0.1):
        case = make_fusion("additive_head", 1, 2)
        latents = make_latents(2, 2, ROWS)
        case.fusion.projections[0].register_full_backward_hook(
            lambda m, i, o, s=scale: tuple(s * g for g in i)
        )
        out = loss_of(ROUTINGS[1])(latents, None, fusion=case.fusion, permutations=table_of())
        results.append(torch.autograd.grad(out.loss, latents))
    torch.testing.assert_close(results[1][0], 0.1 * results[0][0])
    torch.testing.assert_close(results[1][1], results[0][1])


@pytest.mark.parametrize("kind", ["additive_head", "gated"])
def test_full_backward_hooks_inside_that_change_gradients_are_refused(kind):
    case = make_fusion(kind, 1, 2)
    inner = case.fusion.head[1] if kind == "additive_head" else case.fusion.values[0]
    inner.register_full_backward_hook(lambda m, i, o: tuple(0.1 * g for g in i))
    latents = make_latents(2, 2, ROWS)
    out = loss_of(ROUTINGS[1])(latents, None, fusion=case.fusion, permutations=table_of())
    with pytest.raises(RuntimeError, match="a backward hook of Linear in the fusion changes"):
        (out.loss + out.logits.sum()).backward()


def test_hooks_are_where_they_were_after_an_error():
    case = make_fusion("gated", 1, 2)
    case.fusion.gate.register_full_backward_hook(lambda m, i, o: None)
    hook = case.fusion.gate.weight.register_hook(lambda g: 2 * g)
    before = dict(case.fusion.gate._backward_hooks)
    latents = make_latents(2, 2, ROWS)
    calls = []

    def fusion(z):
        calls.append(len(z[0]))
        if len(calls) == 3:
            raise KeyError("in the third run")
        return case.fusion(z)

    with pytest.raises(KeyError):
        loss_of(ROUTINGS[1])(latents, None, fusion=fusion, permutations=table_of())
    assert dict(case.fusion.gate._backward_hooks) == before
    assert list(case.fusion.gate.weight._backward_hooks) == [hook.id]
    hook.remove()
    assert not case.fusion.gate.weight._backward_hooks


@pytest.mark.parametrize("kind", ["additive_head", "gated"])
def test_global_backward_hooks_hear_one_backward(kind):
    case = make_fusion(kind, 1, 2)
    latents = make_latents(2, 2, ROWS)
    seen = []
    handle = nn.modules.module.register_module_full_backward_hook(
        lambda m, i, o: seen.append(type(m).__name__)
    )
    try:
        fusion = lambda z: case.fusion(z)  # noqa: E731
        out = loss_of(ROUTINGS[1])(latents, None, fusion=fusion, permutations=table_of())
        assert seen == []
        (out.loss + out.logits.sum()).backward()
    finally:
        handle.remove()
    modules = [m for m in case.fusion.modules() if not isinstance(m, nn.ModuleList)]
    assert 0 < len(seen) <= len(modules) + 1
    assert not nn.modules.module._global_backward_hooks
