"""What tests (and benchmarks) feed the losses: one place that makes latents, fusions and masks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import mcr_fast

CLASSES = 3


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_latents(
    seed: int,
    num_modalities: int,
    num_rows: int,
    width: int = 4,
    length: int = 0,
    dtype=torch.float64,
):
    """M tensors [N, D], or [N, T, D] with a length; leaves that require gradients."""
    shape = (num_rows, length, width) if length else (num_rows, width)
    g = generator(seed)
    return [
        torch.randn(shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
        for _ in range(num_modalities)
    ]


class Gated(nn.Module):
    def __init__(self, num_modalities: int, width: int):
        super().__init__()
        self.gate = nn.Linear(num_modalities * width, num_modalities)
        self.values = nn.ModuleList(nn.Linear(width, CLASSES) for _ in range(num_modalities))

    def forward(self, latents: list[Tensor]) -> Tensor:
        gate = self.gate(torch.cat(latents, -1)).softmax(-1)
        return sum(
            gate[:, m : m + 1] * v(z)
            for m, (v, z) in enumerate(zip(self.values, latents, strict=True))
        )


class Transformer(nn.Module):
    """Attention over the tokens of all modalities, latents [N, T, D]."""

    def __init__(self, num_modalities: int, width: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, CLASSES)

    def forward(self, latents: list[Tensor]) -> Tensor:
        x = torch.cat(latents, 1)
        return self.out(self.norm(x + self.attention(x, x, x)[0]).mean(1))


@dataclass
class FusionCase:
    """A fusion, the same function for the oracle, and which tensor of it belongs to whom."""

    fusion: nn.Module
    oracle: Callable[[list[Tensor]], Tensor]
    owned: list[tuple[Tensor, int | None]]  # the oracle's tensors
    read: Callable[[], list[Tensor]]  # our gradients, in the order of `owned`
    length: int = 0


def _grad(x: Tensor) -> Tensor:
    return torch.zeros_like(x) if x.grad is None else x.grad


def _of_modules(
    fusion: nn.Module, owner: Callable[[str], int | None], length: int = 0
) -> FusionCase:
    named = list(fusion.named_parameters())
    return FusionCase(
        fusion,
        fusion,
        [(p, owner(name)) for name, p in named],
        lambda: [_grad(p) for _, p in named],
        length,
    )


def _of_linear(
    first: nn.Linear, fusion: nn.Module, head: nn.Module | None, num_modalities: int
) -> FusionCase:
    """Column blocks of the first layer are tensors of their own for the oracle."""
    blocks = [b.detach().clone().requires_grad_() for b in first.weight.chunk(num_modalities, 1)]
    rest = [] if head is None else list(head.parameters())

    def oracle(latents: list[Tensor]) -> Tensor:
        hidden = sum(z @ b.T for z, b in zip(latents, blocks, strict=True)) + first.bias
        return hidden if head is None else head(hidden)

    def read() -> list[Tensor]:
        return [*_grad(first.weight).chunk(num_modalities, 1), *map(_grad, [first.bias, *rest])]

    owned = [(b, m) for m, b in enumerate(blocks)] + [(p, None) for p in [first.bias, *rest]]
    return FusionCase(fusion, oracle, owned, read)


def projection_owner(name: str) -> int | None:
    return int(name.split(".")[1]) if name.startswith("projections.") else None


FUSIONS = ("linear", "sequential", "additive", "additive_head", "gated", "transformer")


def make_fusion(
    kind: str, seed: int, num_modalities: int, width: int = 4, dtype=torch.float64
) -> FusionCase:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _make_fusion(kind, num_modalities, width, dtype)


def _make_fusion(kind: str, num_modalities: int, width: int, dtype: torch.dtype) -> FusionCase:
    if kind == "linear":
        linear = nn.Linear(num_modalities * width, CLASSES).to(dtype)
        return _of_linear(linear, linear, None, num_modalities)
    if kind == "sequential":
        first = nn.Linear(num_modalities * width, 5)
        seq = nn.Sequential(first, nn.Tanh(), nn.Linear(5, CLASSES)).to(dtype)
        fusion = mcr_fast.AdditiveFusion.from_sequential(seq, [width] * num_modalities)
        return _of_linear(first, fusion, seq[1:], num_modalities)
    if kind in ("additive", "additive_head"):
        hidden = CLASSES if kind == "additive" else 5
        head = None if kind == "additive" else nn.Sequential(nn.Tanh(), nn.Linear(5, CLASSES))
        projections = [
            nn.Sequential(nn.Linear(width, 6), nn.Tanh(), nn.Linear(6, hidden))
            for _ in range(num_modalities)
        ]
        bias = nn.Parameter(torch.randn(hidden))
        fusion = mcr_fast.AdditiveFusion(projections, bias, head).to(dtype)
        return _of_modules(fusion, projection_owner)
    made = {"gated": Gated, "transformer": Transformer}[kind]
    return _of_modules(
        made(num_modalities, width).to(dtype), lambda name: None, 2 if kind == "transformer" else 0
    )


def make_present(seed: int, num_rows: int, num_modalities: int) -> Tensor:
    """About a quarter of the modalities missing."""
    return torch.rand(num_rows, num_modalities, generator=generator(seed)) > 0.25
