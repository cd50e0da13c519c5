"""What the ops that read a linear layer share: who takes its tensors, and its plain gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mcr_fast import _libraries as libraries
from mcr_fast.ops._backend import resolve, shared_memory
from mcr_fast.ops._limits import MAX_MODALITIES, Call, pairs_of
from mcr_fast.ops._modes import autocast_enabled

_SERVED_ON_CUDA = libraries.has_kernel("linear_permuted_divergence_fwd", "CUDA")


def takes(
    latents: Sequence[Tensor],
    weight: Tensor,
    arguments: tuple[Any, ...],
    backend: str | None,
) -> bool:
    """Whether the compiled kernels are to serve such tensors."""
    dtype, device, count = weight.dtype, weight.device, len(latents)
    if not (weight.is_cpu or weight.is_cuda) or count > MAX_MODALITIES:
        return False
    if any(z.device != device or z.dtype != dtype for z in latents):
        return False
    # the op's products have the dtype of their factors, and 16 bits are too few for logits
    if dtype.itemsize == 2 or autocast_enabled(device):
        return False
    if weight.is_cpu:
        return resolve("linear_permuted_divergence", backend, device) == "cpu"
    if not _SERVED_ON_CUDA or dtype != torch.float32:
        return False
    given = call_of(latents, weight, arguments)
    return resolve("linear_permuted_divergence", backend, device, call=given) == "cuda"


def call_of(latents: Sequence[Tensor], weight: Tensor, arguments: tuple[Any, ...]) -> Call:
    """What decides who serves the layer's divergences."""
    pairs = pairs_of(latents[0].shape[0], arguments)
    shared = shared_memory(weight.device)
    return Call(weight.shape[0], modalities=len(latents), pairs=pairs, shared=shared)


def layer_gradients(
    grad_contributions: Tensor,  # [M, N, C]
    wanted: Sequence[bool],  # of the latents, of the weight
    latents: Sequence[Tensor],  # M tensors [N, D_m]
    weight: Tensor,  # [C, sum of D_m]
) -> tuple[Tensor | None, ...]:
    """The gradients of a layer's latents and weight, to be differentiated again.

    The logits made of them are the task's: a penalty on its gradient is nobody else's business.
    """
    columns = weight.split([z.shape[1] for z in latents], dim=1)
    per_modality = list(zip(grad_contributions, latents, columns, strict=True))
    return (
        *(g @ w if want else None for (g, _, w), want in zip(per_modality, wanted, strict=False)),
        torch.cat([g.T @ z for g, z, _ in per_modality], dim=1) if wanted[-1] else None,
    )
