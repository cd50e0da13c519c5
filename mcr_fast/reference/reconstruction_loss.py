"""Mean squared error against all modalities' latents in plain torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mcr_fast.reference._similarity import accumulation_dtype


def reconstruction_loss_reference(
    latents: Sequence[Tensor],  # M tensors [N, D_m]
    reconstruction: Tensor,  # [N, sum of D_m]
) -> Tensor:  # []
    """Mean over all elements of (reconstruction - [Z_1 .. Z_M])^2; 0 for an empty batch."""
    dtype = accumulation_dtype(reconstruction.dtype, *(z.dtype for z in latents))
    difference = reconstruction.to(dtype) - torch.cat([z.to(dtype) for z in latents], dim=1)
    return difference.square().sum() / max(difference.numel(), 1)
