"""What the two contrastive references share: the rows, and every pair's scaled similarity."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def accumulation_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 if any input is float64, else float32: nothing is accumulated in 16 bits."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A region whose products keep their inputs' dtype; meta tensors know no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


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
    z = F.normalize(x, dim=1)
    with without_autocast(x.device):  # logits are never rounded to 16 bits
        similarities = z @ z.T / temperature
    other = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    if present is not None:
        other = other & present[:, None] & present[None, :]
    same_label = other & (labels[:, None] == labels[None, :])
    return similarities, same_label, other
