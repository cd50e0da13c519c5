"""The divergence between two rows of logits, for both references of the regularizer."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mcr_fast._names import DIVERGENCES, choice

# No logit of a sum is taken to be further from 0: masks as large as the largest number there is can
# be added up.
_FARTHEST = 1e20


def saturated(x: Tensor) -> Tensor:
    """x within +-1e20, with the gradient that it had without; NaN where it is not finite."""
    return torch.where(x.abs() <= _FARTHEST, x, x.sign() * _FARTHEST + (x - x.detach()))


def _jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p log(p/m) / 2 + q log(q/m) / 2 elementwise; 0, not NaN, where both underflow."""
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)) / 2


def row_divergences(clean: Tensor, perturbed: Tensor, divergence: str) -> Tensor:
    """[..., C] and [..., C] logits -> [...] divergences, in nats, none below 0."""
    choice("divergence", divergence, DIVERGENCES)
    if divergence == "jsd":
        rows = _jensen_shannon(clean.log_softmax(-1), perturbed.log_softmax(-1)).sum(-1)
    elif divergence == "mse":
        difference = clean - perturbed
        # 0 * difference: an infinite difference is NaN, as it is for the other divergences
        rows = (difference * difference + 0 * difference).mean(-1)
    else:
        yes = _jensen_shannon(F.logsigmoid(clean), F.logsigmoid(perturbed))
        no = _jensen_shannon(F.logsigmoid(-clean), F.logsigmoid(-perturbed))
        rows = (yes + no).mean(-1)
    # What rounding leaves below 0 is 0, with the gradient that it had; NaN is not below 0.
    return torch.where(rows < 0, rows - rows.detach(), rows)


def weighted_sum(
    clean: Tensor,  # [..., C]
    perturbed: Tensor,  # [..., C]
    weight: Tensor,  # [...], 0 drops a row
    divergence: str,
) -> Tensor:  # []
    """Sum of weight * divergence; a row of weight 0 counts 0 whatever it holds, NaN included."""
    kept = (weight != 0)[..., None]
    zero = clean.new_zeros(())
    # replaced before the divergence: masking its result would leave 0 * NaN in the gradients
    rows = row_divergences(
        torch.where(kept, clean, zero), torch.where(kept, perturbed, zero), divergence
    )
    return (weight * rows).sum()


def mean_or_zero(total: Tensor, weight: Tensor) -> Tensor:
    """total / weight, and 0 with zero gradient where the weight is 0."""
    empty = weight == 0
    return torch.where(empty, torch.zeros_like(total), total / torch.where(empty, 1, weight))
