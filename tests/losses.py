"""Each op's public function as a loss of two latents [N, D]: what tests of every op go through."""

from collections.abc import Callable

import torch
from torch import Tensor

from mcr_fast import functional as F


def _labels(a: Tensor) -> Tensor:
    return torch.arange(a.shape[0], device=a.device) // 2


def _table(a: Tensor) -> Tensor:
    rows = torch.arange(a.shape[0], device=a.device)
    return torch.stack([rows.roll(1), rows.roll(2)])


def _linear(a: Tensor, b: Tensor, **options) -> Tensor:
    width = a.shape[1] + b.shape[1]
    weight = torch.linspace(-1, 1, 5 * width, dtype=a.dtype, device=a.device).view(5, width)
    return F.linear_permuted_divergence([a, b], weight, _table(a), **options).sum()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "permuted_divergence": lambda a, b, **options: F.permuted_divergence(
        [a, b], _table(a), **({"strategy": "independent"} | options)
    ).sum(),
    "linear_permuted_divergence": _linear,
    "row_divergence": lambda a, b, **options: F.row_divergence(a, b, _table(a)[0], **options),
    "nt_xent": lambda a, b, **options: F.nt_xent([a, b], _labels(a), **options),
    "sup_con": lambda a, b, **options: F.sup_con([a, b], _labels(a), **options),
    "reconstruction_loss": lambda a, b, **options: F.reconstruction_loss(
        [a, a.square()], torch.cat([b, b.cos()], 1), **options
    ),
}


def true_gradient(op: str) -> dict[str, str]:
    """The options with which nothing scales the gradient on its way."""
    return {"strategy": "collaborative"} if op.endswith("permuted_divergence") else {}
