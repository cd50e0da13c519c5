"""The formulation that the paper's experiments run, restated: the baseline of every speed-up.

Nothing is slower here than it has to be for the formulation's sake, and nothing is cleverer:
permuted and repeated copies [K*N, D] of both modalities, three fusion passes on them for each
perturbed modality, Jensen-Shannon divergences from softmaxes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["jensen_shannon", "published_nt_xent", "released_mipd", "released_step"]


def published_nt_xent(temperature: float) -> nn.Module:
    """The contrastive loss that the published code calls; its package may be missing."""
    from pytorch_metric_learning.losses import NTXentLoss

    return NTXentLoss(temperature=temperature)


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:  # [R, C], [R, C] logits -> []
    """Mean divergence of the rows, as published: of softmaxes, the mean clamped."""
    p, q = first.softmax(1), second.softmax(1)
    log_mean = ((p + q) / 2).clamp(min=1e-20).log()
    to_p = F.kl_div(log_mean, p, reduction="batchmean")
    to_q = F.kl_div(log_mean, q, reduction="batchmean")
    return (to_p + to_q) / 2


def _contributions(linear: nn.Linear, latents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Each modality's product with its columns of the weight."""
    width = latents[0].shape[1]
    first = F.linear(latents[0], linear.weight[:, :width])
    second = F.linear(latents[1], linear.weight[:, width:])
    return first, second


def _passes(linear: nn.Linear, latents: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with the first contribution detached, with the second detached, with none detached.

    The model runs as a whole for each.
    """
    first, second = _contributions(linear, latents)
    without_first = first.detach() + second + linear.bias
    first, second = _contributions(linear, latents)
    without_second = first + second.detach() + linear.bias
    first, second = _contributions(linear, latents)
    return without_first, without_second, first + second + linear.bias


def released_mipd(
    latents: list[Tensor],  # 2 tensors [N, D]
    linear: nn.Linear,  # over the concatenated latents
    num_permutations: int,
    *,
    permutations: Tensor | None = None,  # [K, N] int64, drawn if None
    logged: dict[str, Tensor] | None = None,
) -> Tensor:  # []
    """The scalar that the published greedy loss adds: identically 0, its gradient is the game's.

    `logged` gets the divergence of each perturbed modality, which the code also reports.
    """
    if len(latents) != 2:
        raise ValueError(f"the released formulation has 2 modalities, got {len(latents)}")
    num_rows = len(latents[0])
    drawn = (
        [torch.randperm(num_rows) for _ in range(num_permutations)]
        if permutations is None
        else list(permutations)
    )
    first, second = _contributions(linear, latents)
    clean = (first + second + linear.bias).repeat(len(drawn), 1)
    repeated = [torch.cat([z] * len(drawn)) for z in latents]
    permuted = [torch.cat([z[index] for index in drawn]) for z in latents]

    total = clean.new_zeros(())
    for m, copies in enumerate([[permuted[0], repeated[1]], [repeated[0], permuted[1]]]):
        divergences = [jensen_shannon(clean, logits) for logits in _passes(linear, copies)]
        # the owner of the perturbed modality raises the divergence, the other one lowers it
        to_second, to_first, whole = divergences
        total = total + (to_second - to_first if m == 0 else to_first - to_second)
        if logged is not None:
            logged[f"divergence_{m}"] = whole.detach()
    return total


def released_step(
    latents: list[Tensor],  # 2 tensors [N, D]
    labels: Tensor,  # [N]
    linear: nn.Linear,
    num_permutations: int,
    contrastive: nn.Module,  # pytorch-metric-learning's NTXentLoss
    *,
    mipd_weight: float = 0.1,
    contrastive_weight: float = 1.0,
    permutations: Tensor | None = None,  # [K, N] int64
    logged: dict[str, Tensor] | None = None,
) -> Tensor:  # []
    """What the published step adds to the task loss."""
    mipd = released_mipd(
        latents, linear, num_permutations, permutations=permutations, logged=logged
    )
    shared = contrastive(torch.cat(latents), labels.repeat(len(latents)))
    return mipd_weight * mipd + contrastive_weight * shared
