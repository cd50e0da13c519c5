"""Supervised contrastive loss in plain torch: the truth that tests and benchmarks import."""

import math

import torch
from torch import Tensor

from mcr_fast.reference._similarity import scaled_similarities


def sup_con_reference(
    embeddings: Tensor,  # [L, D]
    labels: Tensor,  # [L] int64 codes, compared by equality
    present: Tensor | None = None,  # [L] bool
    temperature: float = 0.1,
) -> Tensor:  # []
    """Mean over anchors a with positives P of -1/|P| sum_p (s_ap - log sum over j != a of e^s_aj).

    O(L^2) memory; differentiable by autograd.
    """
    s, positive, other = scaled_similarities(embeddings, labels, present, temperature)
    count = positive.sum(dim=1)
    is_anchor = count > 0
    # only anchors enter: a row alone in the batch has an empty denominator
    masked = torch.where(is_anchor[:, None], s.masked_fill(~other, -math.inf), s.new_zeros(()))
    log_all = torch.logsumexp(masked, dim=1)
    mean_positive = torch.where(positive, s, s.new_zeros(())).sum(dim=1) / count.clamp(min=1)
    per_anchor = torch.where(is_anchor, log_all - mean_positive, s.new_zeros(()))
    return per_anchor.sum() / is_anchor.sum().clamp(min=1)
