"""A parameter with uses of several owners: every use counts for itself, whatever way is taken.

The oracle knows no ties: it gets a copy of the parameter for each use, and the gradients of the
copies add up to the parameter's.
"""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from called import C, D, doubles, gradients, table_of
from inputs import make_latents
from oracle import Oracle
from torch import nn

from mcr_fast import AdditiveFusion

ROWS = 5
ROUTINGS = [
    ("greedy", "routed"),
    ("greedy", "shared"),
    ("independent", "routed"),
    ("collaborative", "detached"),
]


class Outside(nn.Module):
    """Goes on from an additive fusion, with a layer of its own and with a bare weight."""

    def __init__(self, add, width):
        super().__init__()
        self.add, self.layer = add, nn.Linear(width, width, bias=False)
        self.weight, self.out = nn.Parameter(torch.randn(width, width)), nn.Linear(width, C)

    def forward(self, z):
        hidden = self.layer(self.add(z).tanh()).tanh()
        return self.out(F.linear(hidden, self.weight))


def siamese():
    return AdditiveFusion([nn.Linear(D, C, bias=False) for _ in range(3)])


def with_head():
    head = nn.Sequential(nn.Tanh(), nn.Linear(D, D, bias=False), nn.Linear(D, C))
    return AdditiveFusion([nn.Linear(D, D, bias=False) for _ in range(3)], None, head)


def columns():
    layers = nn.Linear(3 * D, 3 * D), nn.Tanh(), nn.Linear(3 * D, 3 * D), nn.Linear(3 * D, C)
    return AdditiveFusion.from_sequential(nn.Sequential(*layers), [D] * 3)


def deep():
    made = [nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, C)) for _ in range(3)]
    return AdditiveFusion(made)


def outside():
    return Outside(AdditiveFusion([nn.Linear(D, D, bias=False) for _ in range(3)]), D)


def outside_columns():
    return Outside(AdditiveFusion.from_linear(nn.Linear(3 * D, 3 * D), [D] * 3), 3 * D)


# A fusion, how its parts are tied, and whose each use is of the weight: "columns" of all three.
P0, P1, P2 = (f"projections.{m}" for m in range(3))
ADDITIVE = {
    "a projection of two": (siamese, "module", {P0: 0, P2: 2}),
    "a projection of all": (siamese, "module", {P0: 0, P1: 1, P2: 2}),
    "a weight of two": (siamese, "weight", {P1: 1, P2: 2}),
    "a layer of two": (deep, "module", {f"{P0}.2": 0, f"{P1}.2": 1}),
    "a projection in the head": (with_head, "module", {P0: 0, "head.1": None}),
    "two and the head": (with_head, "weight", {P0: 0, P1: 1, "head.1": None}),
    "columns in the head": (columns, "weight", {"linear": "columns", "head.1": None}),
}
AROUND = {
    "a projection": (outside, "module", {f"add.{P1}": 1, "layer": None}),
    "a weight": (outside, "weight", {f"add.{P0}": 0, "layer": None}),
    "a bare weight": (outside, "weight", {f"add.{P0}": 0, "": None}),
    "of two": (outside, "weight", {f"add.{P0}": 0, f"add.{P2}": 2, "": None}),
    "columns": (outside_columns, "weight", {"add.linear": "columns", "layer": None}),
    "columns, bare": (outside_columns, "weight", {"add.linear": "columns", "": None}),
}


def tied(make, what, uses):
    """A fusion with ties, and the same without."""
    fusion = doubles(make())
    names = [f"{part}.weight".lstrip(".") if what == "weight" else part for part in uses]
    values = [_get(fusion, name) for name in names]
    for value in values[1:]:
        if what == "module":
            value.load_state_dict(values[0].state_dict())
        else:
            value.data.copy_(values[0].data)
    untied = copy.deepcopy(fusion)
    for name in names[1:]:
        owner, _, attribute = name.rpartition(".")
        setattr(fusion.get_submodule(owner), attribute, values[0])
    return fusion, untied


def _get(module, name):
    owner, _, attribute = name.rpartition(".")
    return getattr(module.get_submodule(owner), attribute)


def wanted(untied, uses, latents, routing):
    """The gradients of the latents, and the sum of those of the weight's copies."""
    copies = []
    for part, owner in uses.items():
        weight = untied.get_submodule(part).weight
        copies += [(weight, m) for m in (range(3) if owner == "columns" else [owner])]
    oracle = Oracle(untied, latents, copies, table_of())
    found = oracle.gradients(*routing)
    to_latents, to_copies = found[:3], iter(found[3:])
    total = 0
    for owner in uses.values():
        if owner == "columns":
            blocks = [next(to_copies)[:, m * D : (m + 1) * D] for m in range(3)]
            total = total + torch.cat(blocks, 1)
        else:
            total = total + next(to_copies)
    return [*to_latents, total]


def check(fusion, called, untied, uses):
    latents = make_latents(2, 3, ROWS)
    weight = fusion.get_submodule(next(iter(uses))).weight
    for routing in ROUTINGS:
        _, grads = gradients(called, latents, routing, [weight])
        torch.testing.assert_close(
            grads, wanted(untied, uses, latents, routing), rtol=1e-8, atol=1e-12
        )


@pytest.mark.parametrize("tie", ADDITIVE)
@pytest.mark.parametrize("form", ["itself", "hooked", "function", "compiled"])
def test_every_use_in_an_additive_fusion_counts_for_itself(form, tie):
    make, what, uses = ADDITIVE[tie]
    fusion, untied = tied(make, what, uses)
    called = fusion
    if form == "hooked":
        fusion.register_forward_hook(lambda *_: None)
    elif form == "function":
        called = lambda z: fusion(z)  # noqa: E731
    elif form == "compiled":
        torch._dynamo.reset()
        called = functools.partial(torch.compile, backend="eager")(lambda z: fusion(z))
    check(fusion, called, untied, uses)


@pytest.mark.parametrize("tie", AROUND)
@pytest.mark.parametrize("form", ["module", "function"])
def test_a_use_outside_of_the_additive_fusion_is_shared(form, tie):
    make, what, uses = AROUND[tie]
    fusion, untied = tied(make, what, uses)
    check(fusion, fusion if form == "module" else lambda z: fusion(z), untied, uses)


def test_a_tied_weight_under_autocast_has_a_cast_for_each_use():
    """Autocast would keep one cast for all uses, with one edge back to the parameter."""
    torch.manual_seed(1)
    fusion = siamese()
    _, untied = tied(siamese, "module", {P0: 0, P1: 1})
    untied.float()
    fusion.load_state_dict(untied.state_dict())
    fusion.projections[1] = fusion.projections[0]
    latents = make_latents(2, 3, ROWS, dtype=torch.float32)
    weight, found = fusion.projections[0].weight, []
    for called in (fusion, lambda z: fusion(z)):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(gradients(called, latents, ("greedy", "routed"), [weight])[1][-1])
    assert found[0].abs().max() > 1e-3
    torch.testing.assert_close(found[1], found[0], rtol=2e-2, atol=2e-2 * found[0].abs().max())
