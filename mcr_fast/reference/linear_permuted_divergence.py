"""Permuted divergence of a linear fusion in plain torch: its products, then the divergence."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mcr_fast.reference._similarity import accumulation_dtype, without_autocast
from mcr_fast.reference.permuted_divergence import permuted_divergence_reference


def linear_contributions(
    latents: Sequence[Tensor],  # M tensors [N, D_m]
    weight: Tensor,  # [C, sum of D_m]
) -> Tensor:  # [M, N, C]
    """Z_m times the columns of modality m, in float32 at least: what 16 bits would round is logits.

    Differentiable by autograd.
    """
    dtype = accumulation_dtype(weight.dtype, *(z.dtype for z in latents))
    columns = weight.split([z.shape[1] for z in latents], dim=1)
    with without_autocast(weight.device):
        products = [
            F.linear(z.to(dtype), w.to(dtype)) for z, w in zip(latents, columns, strict=True)
        ]
    return torch.stack(products)


def linear_permuted_divergence_reference(
    latents: Sequence[Tensor],  # M tensors [N, D_m]
    weight: Tensor,  # [C, sum of D_m]
    bias: Tensor | None,  # [C]
    *pairs: Tensor | None,  # as `permuted_divergence_reference` has them after the bias
    **options: Any,
) -> Tensor:  # [S]
    """D_S of the layer's contributions; all else as `permuted_divergence_reference`."""
    return permuted_divergence_reference(
        linear_contributions(latents, weight), bias, *pairs, **options
    )
