"""What the two contrastive references share: the rows, and every pair's scaled similarity."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def accumulation_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 if any input is float64, else float32: nothing is accumulated in 16 bits."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A region whose products keep their inputs' dtype; meta tensors know no autocast."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _normalized(x: Tensor) -> Tensor:  # [L, D]
    """x / max(|x|, 1e-12), of rows whose squares leave the range of the dtype too.

    A power of two makes the largest element about 1 first; rows far below 1e-12 are left alone.
    """
    if x.shape[1] == 0:
        return x
    exponent = x.detach().abs().amax(1, keepdim=True).frexp().exponent.clamp(-60, 1000)
    # in two halves: one factor alone could underflow
    half = torch.ldexp(torch.ones_like(x[:, :1]), -(exponent // 2))
    rest = torch.ldexp(torch.ones_like(x[:, :1]), exponent // 2 - exponent)
    scaled = x * half * rest
    smallest = 1e-12 * half * rest
    return scaled / torch.maximum(scaled.norm(dim=1, keepdim=True), smallest)


def scaled_similarities(
    embeddings: Tensor,  # [L, D]
    labels: Tensor,  # [L]
    present: Tensor | None,  # [L] bool
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:  # [L, L] similarities, same-label mask, other-row mask
    """Return s_ab = z_a . z_b / temperature, and which pairs (a, b) of present rows a != b count.

    The first mask keeps the pairs of equal label, the second keeps all of them.
    """
    x = embeddings.to(accumulation_dtype(embeddings.dtype))
    if present is not None:
        # where, not a product: whatever an absent row holds, NaN included, must not matter
        x = torch.where(present[:, None], x, x.new_zeros(()))
    z = _normalized(x)
    with without_autocast(x.device):  # logits are never rounded to 16 bits
        similarities = z @ z.T / temperature
    other = ~torch.eye(x.shape[0], dtype=torch.bool, device=x.device)
    if present is not None:
        other = other & present[:, None] & present[None, :]
    same_label = other & (labels[:, None] == labels[None, :])
    return similarities, same_label, other
