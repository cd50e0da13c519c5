"""The best that plain torch does: what a careful user would write without compiled kernels.

Additive fusion, no copies of latents, no loop over permutations, as few passes over the big tensors
as autograd allows; dense matrices for the contrastive terms. Each formulation was chosen by
measuring its alternatives. `bench/released.py` holds what the published code does instead.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Below this many rows a dense masked sum is faster than picking the positive pairs.
FEW_ROWS = 256
# Probabilities that underflow would give 0 * log 0.
TINY = 1e-30


def _sum_of_divergences(clean: Tensor, perturbed: Tensor) -> Tensor:
    """Sum of the Jensen-Shannon divergences of the softmaxes, clean [N, C] broadcast.

    With t = p + q: JSD = sum p log(2p/t) / 2 + sum q log(2q/t) / 2, and its derivatives by p and q
    are log(p/t) / 2 and log(q/t) / 2 up to constants that the softmax's backward removes. So the
    logarithms are constants for autograd: value and gradient come out right with half the passes.
    """
    q = perturbed.softmax(-1)
    p = clean.softmax(-1).clamp_min(TINY)
    with torch.no_grad():
        log_t = (q + p).log_()
        batch = tuple(range(q.ndim - 2))
        log_p_over_t = p.log() * (q.numel() // p.numel()) - log_t.sum(batch)
        log_q_over_t = q.clamp_min(TINY).log_().sub_(log_t)
    # log 2 belongs to both terms, and the probabilities of a row sum to 1
    constant = 0.6931471805599453 * (q.numel() // q.shape[-1])
    return ((q * log_q_over_t).sum() + (p * log_p_over_t).sum()) / 2 + constant


def mipd_eager(
    contributions: Tensor,  # [M, N, C]
    bias: Tensor,  # [C]
    table: Tensor | None,  # [K, N], None: exhaustive
) -> Tensor:  # []
    """L_MIPD with the greedy gradients of single-modality subsets, clean path shared."""
    num_modalities, num_rows, num_classes = contributions.shape
    head_factor = 2 - num_modalities  # 1 for the member, -1 for each other modality
    clean, shared_bias = contributions.detach().sum(0), bias.detach()
    if head_factor:
        clean = clean + head_factor * (contributions.sum(0) - clean)
        shared_bias = shared_bias + head_factor * (bias - shared_bias)
    clean = clean + shared_bias
    # what stays of row i when modality m is replaced; its owners work against the perturbation
    others = contributions.flip(0) if num_modalities == 2 else contributions.sum(0) - contributions
    others = 2 * others.detach() - others + shared_bias
    if table is None:
        perturbed = contributions[:, :, None] + others[:, None]  # [M, donor, row, C]
        num_pairs = num_rows * (num_rows - 1)  # a row's divergence from itself is 0
    else:
        donors = contributions.index_select(1, table.reshape(-1))
        perturbed = donors.view(num_modalities, -1, num_rows, num_classes) + others[:, None]
        num_pairs = table.numel()
    return -_sum_of_divergences(clean, perturbed) / num_pairs


def row_divergence_eager(
    perturbed: Tensor,  # [K*N, C], the rows of the clean logits K times over
    clean: Tensor,  # [N, C]
) -> Tensor:  # []
    """Mean divergence; the index is known to be the rows in order, so nothing is gathered."""
    batch = perturbed.view(-1, *clean.shape)
    return _sum_of_divergences(clean, batch) / len(perturbed)


def _unit_rows(embeddings: list[Tensor], temperature: float) -> Tensor:
    return F.normalize(torch.cat(embeddings), dim=1) * temperature**-0.5


def nt_xent_eager(
    embeddings: list[Tensor],  # M tensors [N, D]
    labels: Tensor,  # [M*N]
    temperature: float,
) -> Tensor:  # []
    """One product, one exponential of it; positives are picked from it.

    Without a shift by the maximum: exp(1 / temperature) must be finite.
    """
    x = _unit_rows(embeddings, temperature)
    exponential = (x @ x.T).exp_()
    same = labels[:, None] == labels[None]
    negatives = exponential.masked_fill(same, 0).sum(1)
    if len(x) <= FEW_ROWS:
        positive = same & ~torch.eye(len(x), dtype=torch.bool)
        pairs = torch.log1p(negatives[:, None] / exponential)
        return torch.where(positive, pairs, 0).sum() / positive.sum()
    anchor, partner = same.nonzero(as_tuple=True)
    other = anchor != partner
    anchor, partner = anchor[other], partner[other]
    return torch.log1p(negatives[anchor] / exponential[anchor, partner]).mean()


def sup_con_eager(
    embeddings: list[Tensor],  # M tensors [N, D]
    labels: Tensor,  # [M*N], in 0..num_classes-1
    temperature: float,
    num_classes: int,
) -> Tensor:  # []
    """One product for the denominators; the positives' sum comes from sums over classes."""
    x = _unit_rows(embeddings, temperature)
    similarities = (x @ x.T).fill_diagonal_(-torch.inf)
    if len(x) <= FEW_ROWS:
        positive = (labels[:, None] == labels[None]).fill_diagonal_(False)
        count = positive.sum(1)
        sum_positive = torch.where(positive, similarities, 0).sum(1)
    else:
        ones = torch.ones_like(labels)
        count = ones.new_zeros(num_classes).index_add_(0, labels, ones)[labels] - 1
        sums = x.new_zeros(num_classes, x.shape[1]).index_add(0, labels, x)
        sum_positive = ((sums[labels] - x) * x).sum(1)
    log_all = similarities.exp_().sum(1).log()
    per_anchor = log_all - sum_positive / count.clamp_min(1)
    is_anchor = count > 0
    return torch.where(is_anchor, per_anchor, 0).sum() / is_anchor.sum()
