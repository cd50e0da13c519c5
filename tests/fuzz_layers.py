"""The engine fuzz's grammar of layers: what a fusion is made of, drawn from a `random.Random`."""

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune


class Apply(nn.Module):
    """One functional operation, most of them on their input's own memory."""

    OPS = {
        "relu_": lambda x: F.relu_(x),
        "elu_": lambda x: F.elu_(x),
        "leaky_relu_": lambda x: F.leaky_relu_(x, 0.2),
        "mul_": lambda x: x.mul_(1.5),
        "add_": lambda x: x.add_(0.25),
        "iadd": lambda x: x.__iadd__(x.new_full((), -0.3)),
        "assign": lambda x: _assign(x),
        "sin": torch.sin,
        "softplus": F.softplus,
    }

    def __init__(self, op: str):
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return self.OPS[self.op](x)


def _assign(x: Tensor) -> Tensor:
    x[..., 0] = 0.5
    return x


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.4, training=self.training)


class FixedMask(nn.Module):
    """Dropout whose mask is a buffer, the same for every row."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mask", (torch.rand(width) > 0.3) / 0.7)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


class Twice(nn.Module):
    """One module in two places."""

    def __init__(self, width: int):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Residual(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Pool(nn.Module):
    """The mean over the middle dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        return pool(x)


def pool(x: Tensor) -> Tensor:  # [N, ..., D] -> [N, D]
    return x if x.ndim == 2 else x.flatten(1, -2).mean(1)


OUT_OF_PLACE = (nn.Tanh, nn.GELU, nn.ReLU, nn.SiLU, lambda: Apply("sin"), lambda: Apply("softplus"))
IN_PLACE = (
    lambda: nn.ReLU(inplace=True),
    lambda: nn.ELU(inplace=True),
    lambda: nn.LeakyReLU(0.2, inplace=True),
    *(lambda op=op: Apply(op) for op in ("relu_", "elu_", "leaky_relu_", "mul_", "add_", "assign")),
)


def activation(rng: random.Random, words: list[str]) -> nn.Module:
    if rng.random() < 0.5:
        words.append("in-place layer")
        return rng.choice(IN_PLACE)()
    return rng.choice(OUT_OF_PLACE)()


def extra(rng: random.Random, width: int, words: list[str], batch_norm: bool) -> nn.Module:
    """What may follow an activation."""
    made = {
        "nothing": nn.Identity,
        "layer norm": lambda: nn.LayerNorm(width),
        "dropout": lambda: nn.Dropout(0.4),
        "functional dropout": FunctionalDropout,
        "fixed mask": lambda: FixedMask(width),
        "layer used twice": lambda: Twice(width),
        "residual": lambda: Residual(nn.Sequential(nn.Linear(width, width), nn.Tanh())),
    }
    if batch_norm:
        made["batch norm"] = lambda: nn.BatchNorm1d(width)
    word = rng.choice(["nothing", "nothing", *made])
    if word != "nothing":
        words.append(word)
    return made[word]()


def stack(
    rng: random.Random, width: int, out: int, words: list[str], batch_norm: bool, depth: int = 1
) -> list[nn.Module]:
    """[rows, width] -> [rows, out], to start with an activation: it may work in place."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [activation(rng, words), extra(rng, width, words, batch_norm)]
        layers.append(nn.Linear(width, width))
    return [*layers[:-1], nn.Linear(width, out)]


# Layers over the concatenation


class Adapted(nn.Linear):
    """A frozen layer with a low-rank adapter."""

    def __init__(self, inputs: int, out: int):
        super().__init__(inputs, out)
        self.down = nn.Parameter(torch.randn(2, inputs))
        self.up = nn.Parameter(torch.randn(out, 2))
        self.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


class Cosine(nn.Linear):
    def __init__(self, inputs: int, out: int):
        super().__init__(inputs, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


def _look(module, inputs, output):
    module.seen = output.shape


def _change(module, inputs, output):
    return 1.5 * torch.tanh(output)


def _change_inputs(module, inputs):
    x = inputs[0]
    return ([z * 0.7 for z in x] if isinstance(x, (list, tuple)) else x * 0.7,)


def hook_forward(rng: random.Random, module: nn.Module, words: list[str]) -> None:
    kind = rng.choice(["looks", "changes", "changes inputs"])
    words.append(f"forward hook {kind}")
    if kind == "changes inputs":
        module.register_forward_pre_hook(_change_inputs)
    else:
        module.register_forward_hook(_look if kind == "looks" else _change)


def _pruned(layer: nn.Linear) -> nn.Linear:
    prune.random_unstructured(layer, "weight", amount=0.4)
    return layer


EFFECTIVE = {  # exact linear layers whose weight is computed from other parameters
    "linear": lambda layer: layer,
    "weight norm": nn.utils.weight_norm,
    "spectral norm": nn.utils.spectral_norm,
    "parametrized weight norm": nn.utils.parametrizations.weight_norm,
    "parametrized spectral norm": nn.utils.parametrizations.spectral_norm,
    "pruned": _pruned,
}


def joined(rng: random.Random, kind: str, inputs: int, out: int, words: list[str]) -> nn.Linear:
    """A layer over the concatenated latents."""
    words.append(kind)
    if kind == "adapter":
        return Adapted(inputs, out)
    if kind == "cosine":
        return Cosine(inputs, out)
    layer = nn.Linear(inputs, out, bias=rng.random() < 0.8)
    if kind == "hooked linear":
        hook_forward(rng, layer, words)
        return layer
    return EFFECTIVE[kind](layer)


JOINED = (*EFFECTIVE, "hooked linear", "adapter", "cosine")
