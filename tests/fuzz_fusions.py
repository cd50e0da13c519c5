"""The engine fuzz's grammar of fusions: how one is called, and whose its parameters are."""

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

import fuzz_layers as layers
import torch
import torch.nn.functional as F
from fuzz_layers import pool
from inputs import projection_owner
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mcr_fast

WIDTH = 4  # of what is hidden


@dataclass
class Sizes:
    """What a fusion is made for."""

    dims: list[int]
    ranks: list[int]
    classes: int
    num_rows: int
    train: bool
    perturbation: str
    linear: bool  # a layer over the concatenation, perhaps in front of others

    @property
    def batch_norm(self) -> bool:
        """Batch norm cannot train on fewer than two rows."""
        return self.num_rows > 1 or not self.train


@dataclass
class Drawn:
    """A fusion as the engine gets it, and what the oracle needs to know of it.

    way: "callable", everything is run as it is; "columns", a linear layer over the concatenation
        whose columns belong to modalities, then a head; "additive", projections and a head.
    """

    fusion: Callable[[list[Tensor]], Tensor]
    net: nn.Module | None
    way: str = "callable"
    linear: nn.Linear | None = None
    head: nn.Module | None = None
    takes_tensor: bool = False
    owner: Callable[[str], int | None] = lambda name: None

    def apply(self, latents: list[Tensor]) -> Tensor:
        """What calling the fusion gives."""
        return self.fusion(torch.cat(latents, -1) if self.takes_tensor else latents)


def draw(rng: random.Random, sizes: Sizes, words: list[str], tied: nn.Module | None) -> Drawn:
    """A random fusion for these latents; `tied`: a linear layer of an encoder."""
    flat = all(rank == 2 for rank in sizes.ranks)
    kinds = ["callable", "callable", "additive"] + ["joined"] * (2 if flat else 0)
    kind = rng.choice(kinds)
    if kind == "joined" or sizes.linear:
        return _joined(rng, sizes, words)
    if kind == "additive":
        return _additive(rng, sizes, words)
    return _callable(rng, sizes, words, tied)


def _joined(rng: random.Random, sizes: Sizes, words: list[str]) -> Drawn:
    kind = rng.choice(layers.JOINED)
    wrap = rng.choice(["bare", "from_linear", "from_sequential", "bare sequential"])
    words.append(wrap)
    total = sum(sizes.dims)
    width = WIDTH if wrap.endswith("sequential") else sizes.classes
    linear = layers.joined(rng, kind, total, width, words)
    way = "callable" if kind in ("adapter", "cosine") else "columns"
    if wrap == "bare":
        return Drawn(linear, linear, way, linear, takes_tensor=True)
    if wrap == "from_linear":
        fusion = mcr_fast.AdditiveFusion.from_linear(linear, sizes.dims)
        return Drawn(fusion, fusion, way, linear)
    rest = layers.stack(rng, WIDTH, sizes.classes, words, sizes.batch_norm)
    whole = nn.Sequential(linear, *rest)
    if wrap == "bare sequential":
        return Drawn(whole, whole, takes_tensor=True)
    fusion = mcr_fast.AdditiveFusion.from_sequential(whole, sizes.dims)
    return Drawn(fusion, fusion, way, linear, fusion.head)


def _projection(rng: random.Random, sizes: Sizes, m: int, out: int, words) -> nn.Module:
    first = [layers.Pool()] if sizes.ranks[m] > 2 else []
    if rng.random() < 0.25:  # on the latent itself
        first.insert(0, layers.activation(rng, words))
    effective = rng.choice(["linear", "linear", *layers.EFFECTIVE])
    if effective != "linear":
        words.append(f"projection: {effective}")
    make = layers.EFFECTIVE[effective]
    if rng.random() < 0.5:
        last = make(nn.Linear(sizes.dims[m], out))
        return nn.Sequential(*first, last) if first else last
    rest = layers.stack(rng, WIDTH, out, words, sizes.batch_norm)
    return nn.Sequential(*first, make(nn.Linear(sizes.dims[m], WIDTH)), *rest)


def _additive(rng: random.Random, sizes: Sizes, words: list[str]) -> Drawn:
    words.append("additive")
    has_head = rng.random() < 0.6
    out = WIDTH if has_head else sizes.classes
    projections = [_projection(rng, sizes, m, out, words) for m in range(len(sizes.dims))]
    alike = sizes.dims[0] == sizes.dims[1] and sizes.ranks[0] == sizes.ranks[1]
    shared = alike and sizes.perturbation == "permute" and rng.random() < 0.15
    if shared:
        words.append("one projection for two modalities")
        projections[1] = projections[0]
    head = None
    if has_head:
        rest = layers.stack(rng, WIDTH, sizes.classes, words, sizes.batch_norm)
        head = nn.Sequential(*rest)
    bias = rng.choice([None, nn.Parameter(torch.randn(out)), torch.randn(out)])
    fusion = mcr_fast.AdditiveFusion(projections, bias, head)
    hooked = rng.choice(["no", "no", "no", "whole", "projection", "head"])
    way = "additive"
    if hooked == "whole" and not shared:
        words.append("whole:")
        layers.hook_forward(rng, fusion, words)
        way = "callable"
    elif hooked == "projection":
        layers.hook_forward(rng, projections[-1], words)
    elif hooked == "head" and head is not None:
        layers.hook_forward(rng, head, words)
    return Drawn(fusion, fusion, way, head=head, owner=projection_owner)


# Callables


class Body(nn.Module):
    """Features of every modality, a way to combine them, layers, logits."""

    COMBINE = ("sum", "product", "concatenation", "film", "gate", "bilinear", "attention")

    def __init__(self, rng: random.Random, sizes: Sizes, words: list[str]):
        super().__init__()
        self.start = rng.choice(["nothing", "nothing", "list", *layers.Apply.OPS])
        self.touched = rng.randrange(len(sizes.dims))
        one = len(set(sizes.dims)) == 1 and rng.random() < 0.3
        effective = rng.choice(["linear"] * 12 + list(layers.EFFECTIVE))
        words += [f"features: {effective}"] * (effective != "linear")
        make = layers.EFFECTIVE[effective]
        made = [make(nn.Linear(d, WIDTH)) for d in sizes.dims[: 1 if one else None]]
        self.features = nn.ModuleList(made * (len(sizes.dims) if one else 1))
        self.combine = rng.choice(self.COMBINE)
        mixed = {"concatenation": len(sizes.dims) * WIDTH, "film": WIDTH, "gate": WIDTH}
        if self.combine in mixed:
            out = {"film": 2 * WIDTH}.get(self.combine, WIDTH)
            self.mix = nn.Linear(mixed[self.combine], out)
        elif self.combine == "bilinear":
            self.mix = nn.Bilinear(WIDTH, WIDTH, WIDTH)
        elif self.combine == "attention":
            self.mix = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.trunk = nn.Sequential(
            *layers.stack(rng, WIDTH, sizes.classes, words, sizes.batch_norm)
        )
        words += [f"starts with {self.start}", self.combine] + ["one feature layer"] * one

    def forward(self, latents: list[Tensor], condition: Tensor | None = None) -> Tensor:
        x = self._touch(latents)
        if self.combine == "attention":
            tokens = [f(z.flatten(1, -2) if z.ndim > 2 else z[:, None]) for f, z in self._pairs(x)]
            joined = torch.cat(tokens, 1)
            hidden = (joined + self.mix(joined, joined, joined, need_weights=False)[0]).mean(1)
        else:
            hidden = self._mixed([f(pool(z)) for f, z in self._pairs(x)])
        return self.trunk(hidden if condition is None else hidden * condition)

    compute = forward

    def _pairs(self, latents):
        return zip(self.features, latents, strict=True)

    def _touch(self, latents: list[Tensor]) -> list[Tensor]:
        """What a fusion may do to what it was given."""
        if self.start == "list":
            first = latents.pop(0)
            return [2 * first, *latents]
        if self.start != "nothing":
            latents[self.touched] = layers.Apply.OPS[self.start](latents[self.touched])
        return latents

    def _mixed(self, x: list[Tensor]) -> Tensor:
        if self.combine == "sum":
            return sum(x)
        if self.combine == "product":
            return functools.reduce(torch.mul, [z.sin() for z in x])
        if self.combine == "concatenation":
            return self.mix(torch.cat(x, -1))
        if self.combine == "film":
            scale, shift = self.mix(x[0]).chunk(2, -1)
            return scale * sum(x[1:]) + shift
        if self.combine == "gate":
            return torch.sigmoid(self.mix(x[0])) * sum(x)
        return self.mix(x[0], sum(x[1:]))


class Outer(nn.Module):
    """A module around one, that scales its logits in place."""

    def __init__(self, inner: nn.Module, recompute: bool):
        super().__init__()
        self.inner, self.recompute = inner, recompute
        self.scale = nn.Parameter(torch.tensor(1.3))

    def forward(self, latents: list[Tensor]) -> Tensor:
        if self.recompute:
            return checkpoint(self.inner, latents, use_reentrant=False) * self.scale
        return self.inner(latents).mul_(self.scale)


class Pick(nn.Module):
    """Gives one of its inputs back, perhaps overwritten."""

    def __init__(self, modality: int, in_place: bool):
        super().__init__()
        self.modality, self.in_place = modality, in_place

    def forward(self, latents: list[Tensor]) -> Tensor:
        picked = latents[self.modality]
        return picked.mul_(2) if self.in_place else picked


class Conditioned:
    """A closure over a tensor with a graph, computed once a step by another network."""

    def __init__(self, body: Body):
        self.body = body
        self.condition: Tensor | None = None

    def __call__(self, latents: list[Tensor]) -> Tensor:
        return self.body(latents, self.condition)


def _scaled(body: Body, latents: list[Tensor], *, scale: float) -> Tensor:
    return scale * body(latents)


def _tied(body: Body, linear: nn.Linear, latents: list[Tensor]) -> Tensor:
    """The first encoder's layer is used once more, on the first latent."""
    first = pool(latents[0]).clone()
    return body(latents) * F.linear(first, linear.weight.T).sin().sum(-1, keepdim=True)


FORMS = (
    *("module", "module", "module", "nested", "closure", "conditioned", "method", "partial"),
    "default argument",
)


def _callable(rng: random.Random, sizes: Sizes, words: list[str], tied: nn.Linear | None) -> Drawn:
    forms = list(FORMS) + (["tied", "tied"] if tied is not None else [])
    fit = [m for m, d in enumerate(sizes.dims) if d == sizes.classes and sizes.ranks[m] == 2]
    form = rng.choice(forms + (["returns an input"] * 3 if fit else []))
    words.append(form)
    if form == "returns an input":
        net = Pick(rng.choice(fit), rng.random() < 0.5)
        words += ["in-place layer"] * net.in_place
        return Drawn(net if rng.random() < 0.5 else net.forward, net)
    body = Body(rng, sizes, words)
    if form == "nested":
        # what runs twice must not overwrite its input, nor see another mode in the backward
        again = not sizes.train and body.start == "nothing" and "in-place layer" not in words
        words += ["checkpointed"] * again
        net = Outer(body, again)
        return Drawn(net, net)
    if form == "module":
        if rng.random() < 0.3:
            layers.hook_forward(rng, rng.choice([body, body.trunk, body.trunk[0]]), words)
        return Drawn(body, body)
    made = {
        "closure": lambda: lambda latents: body(latents),
        "conditioned": lambda: Conditioned(body),
        "method": lambda: body.compute,
        "default argument": lambda: lambda latents, net=body: net(latents),
        "partial": lambda: functools.partial(_scaled, body, scale=1.5),
        "tied": lambda: functools.partial(_tied, body, tied),
    }
    return Drawn(made[form](), body)
