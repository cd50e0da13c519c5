"""Gradient hooks see one gradient a backward, on the whole sum, and nothing before it."""

import pytest
import torch
from inputs import generator, make_fusion, make_latents
from torch import nn

import mcr_fast
from mcr_fast import MCRLoss

ROWS, C, D = 5, 3, 4
WAYS = ("linear", "additive", "additive_head", "gated", "transformer")
ROUTINGS = [("greedy", "routed"), ("independent", "shared"), ("collaborative", "detached")]


def table():
    return mcr_fast.sample_permutations(3, ROWS, generator=generator(3)).index()


def loss_of(routing, **options):
    options = {"mipd_weight": 1.0, "contrastive_weight": 0.0, "chunk_rows": 4} | options
    return MCRLoss([D, D], C, strategy=routing[0], clean_path=routing[1], **options)


def step(kind, routing, attach=None, closure=False, task=True):
    """The gradients of one step, with what `attach` does to a tensor done to every tensor."""
    case = make_fusion(kind, 1, 2)
    latents = [z * 1.0 for z in make_latents(2, 2, ROWS, length=case.length)]
    for z in latents:
        z.retain_grad()
    tensors = [*latents, *case.fusion.parameters()]
    for x in tensors if attach else ():
        attach(x)
    fusion = case.fusion
    if closure and kind == "linear":
        fusion = lambda z: case.fusion(torch.cat(z, 1))  # noqa: E731
    elif closure:
        fusion = lambda z: case.fusion(z)  # noqa: E731
    out = loss_of(routing)(latents, None, fusion=fusion, permutations=table())
    loss = out.loss + (out.logits.square().sum() if task else 0)
    loss.backward()
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in tensors]


@pytest.mark.parametrize("routing", ROUTINGS, ids="-".join)
@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("kind", WAYS)
def test_tensor_hooks_act_once_on_the_whole_sum(kind, closure, routing):
    raw = step(kind, routing, closure=closure)
    actions = {
        "scale": lambda g: 0.1 * g,
        "clamp": lambda g: g.clamp(-0.01, 0.01),
        "sign": lambda g: g.sign(),
    }
    for name, act in actions.items():
        calls = []

        def attach(x, act=act, calls=calls):
            key = len(calls)
            calls.append(0)

            def hook(g):
                calls[key] += 1
                return act(g)

            x.register_hook(hook)

        hooked = step(kind, routing, attach, closure=closure)
        assert max(calls) == 1, name
        for a, b in zip(hooked, raw, strict=True):
            torch.testing.assert_close(a, act(b), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("routing", ROUTINGS, ids="-".join)
@pytest.mark.parametrize("kind", WAYS)
def test_no_hook_is_called_before_the_backward(kind, routing):
    case = make_fusion(kind, 1, 2)
    latents = make_latents(2, 2, ROWS, length=case.length)
    seen = []
    for x in [*latents, *case.fusion.parameters()]:
        x.register_hook(lambda g: seen.append("tensor"))
        x.register_post_accumulate_grad_hook(lambda x: seen.append("accumulated"))
    for module in case.fusion.modules():
        module.register_full_backward_hook(lambda m, i, o: seen.append("module"))
        module.register_full_backward_pre_hook(lambda m, o: seen.append("module before"))
    out = loss_of(routing)(latents, None, fusion=case.fusion, permutations=table())
    assert seen == []
    (out.loss + out.logits.sum()).backward()
    parameters = list(case.fusion.parameters())
    assert seen.count("accumulated") == len(latents) + len(parameters)
    assert seen.count("tensor") == len(latents) + len(parameters)


@pytest.mark.parametrize("routing", ROUTINGS, ids="-".join)
@pytest.mark.parametrize("kind", ["additive_head", "gated"])
def test_full_backward_hooks_run_once_a_module(kind, routing):
    case = make_fusion(kind, 1, 2)
    latents = make_latents(2, 2, ROWS)
    count = {}
    for name, module in case.fusion.named_modules():
        if name and not isinstance(module, nn.ModuleList):
            module.register_full_backward_hook(
                lambda m, i, o, name=name: count.update({name: count.get(name, 0) + 1})
            )
    out = loss_of(routing)(latents, None, fusion=case.fusion, permutations=table())
    (out.loss + out.logits.sum()).backward()
    assert count
    assert set(count.values()) == {1}


def test_full_backward_hooks_on_projections_may_change_gradients():
    results = []
    for scale in (1.0, 0.1):
        case = make_fusion("additive_head", 1, 2)
        latents = make_latents(2, 2, ROWS)
        case.fusion.projections[0].register_full_backward_hook(
            lambda m, i, o, s=scale: tuple(s * g for g in i)
        )
        out = loss_of(ROUTINGS[1])(latents, None, fusion=case.fusion, permutations=table())
        results.append(torch.autograd.grad(out.loss, latents))
    torch.testing.assert_close(results[1][0], 0.1 * results[0][0])
    torch.testing.assert_close(results[1][1], results[0][1])


@pytest.mark.parametrize("kind", ["additive_head", "gated"])
def test_full_backward_hooks_inside_that_change_gradients_are_refused(kind):
    case = make_fusion(kind, 1, 2)
    inner = case.fusion.head[1] if kind == "additive_head" else case.fusion.values[0]
    inner.register_full_backward_hook(lambda m, i, o: tuple(0.1 * g for g in i))
    latents = make_latents(2, 2, ROWS)
    out = loss_of(ROUTINGS[1])(latents, None, fusion=case.fusion, permutations=table())
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
        loss_of(ROUTINGS[1])(latents, None, fusion=fusion, permutations=table())
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
        out = loss_of(ROUTINGS[1])(latents, None, fusion=fusion, permutations=table())
        assert seen == []
        (out.loss + out.logits.sum()).backward()
    finally:
        handle.remove()
    modules = [m for m in case.fusion.modules() if not isinstance(m, nn.ModuleList)]
    assert 0 < len(seen) <= len(modules) + 1
    assert not nn.modules.module._global_backward_hooks
