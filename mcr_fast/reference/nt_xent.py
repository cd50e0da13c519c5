"""Label-supervised NT-Xent in plain torch: the truth that tests and benchmarks import."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mcr_fast.reference._similarity import scaled_similarities


def nt_xent_reference(
    embeddings: Tensor,  # [L, D]
    labels: Tensor,  # [L] int64 codes, compared by equality
    present: Tensor | None = None,  # [L] bool
    temperature: float = 0.5,
) -> Tensor:  # []
    """Mean over positive pairs (a, p) of log(1 + sum over negatives n of e^(s_an - s_ap)).

    Other positives are not in the denominator. O(L^2) memory; differentiable by autograd.
    """
    s, positive, other = scaled_similarities(embeddings, labels, present, temperature)
    negative = other & ~positive
    has_negative = negative.any(dim=1, keepdim=True)
    # an all -inf row would give a NaN gradient, so such a row is replaced before the reduction
    log_negatives = torch.logsumexp(
        torch.where(has_negative, s.masked_fill(~negative, -math.inf), s.new_zeros(())),
        dim=1,
        keepdim=True,
    ).masked_fill(~has_negative, -math.inf)
    # -logsigmoid and not softplus, whose threshold of 20 costs float64 its last digits
    pair_loss = -F.logsigmoid(s - log_negatives)
    total = torch.where(positive, pair_loss, s.new_zeros(())).sum()
    return total / positive.sum().clamp(min=1)
