"""A linear layer over concatenated latents, seen as one projection of each modality."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcr_fast._wrapping import plain_values, read_linear
from mcr_fast.ops._modes import autocast_enabled, exporting
from mcr_fast.reference._similarity import accumulation_dtype, without_autocast

# Up to this many latent elements the cost is in the number of calls, and one batched product of a
# stacked copy beats M products. Beyond it the copy gains nothing.
STACK_ELEMENTS = 1 << 18


class LinearColumns(NamedTuple):
    """A linear layer over concatenated latents seen as an additive fusion; owns nothing."""

    weight: Tensor  # [H, sum of D_m]
    bias: Tensor | None  # [H]
    latent_dims: tuple[int, ...]
    head: Callable[[Tensor], Tensor] | None = None

    def called_dtype(self) -> torch.dtype:
        """What a call of the layer gives."""
        dtype, device = self.weight.dtype, self.weight.device
        if autocast_enabled(device) and dtype != torch.float64:
            return torch.get_autocast_dtype(device.type)
        return dtype

    def product_dtype(self) -> torch.dtype:
        """Of the contributions: float32 at least where they are logits, without a head."""
        if self.head is None:
            return accumulation_dtype(self.weight.dtype)
        return self.called_dtype()

    def project(self, modality: int, latent: Tensor) -> Tensor:
        """A latent [rows, D_m] times its columns of the weight."""
        start = sum(self.latent_dims[:modality])
        columns = self.weight[:, start : start + self.latent_dims[modality]]
        dtype = self.product_dtype()
        with without_autocast(latent.device):
            return F.linear(latent.to(dtype), columns.to(dtype))

    def operands(self, latents: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Latents of the layer's widths and dtype, and its weight, in the dtype of their product.

        Raises:
            ValueError, TypeError: latents that the layer does not take.
        """
        check_widths(latents, self.latent_dims)
        dtype, weight = self.product_dtype(), self.weight
        if weight.dtype == dtype and all(z.dtype == dtype for z in latents):
            return list(latents), weight
        if not autocast_enabled(weight.device):  # which casts them
            for m, z in enumerate(latents):
                check_dtype(m, z, weight)
        return [z.to(dtype) for z in latents], weight.to(dtype)

    def contributions(self, latents: Sequence[Tensor]) -> Tensor:
        """M latents [N, D_m] -> [M, N, H]."""
        parts, weight = self.operands(latents)
        with without_autocast(weight.device):
            return _products(parts, weight)


def linear_in_float32(latent: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Autocast would round to 16 bits what a softmax is taken of after it was added up."""
    dtype = accumulation_dtype(latent.dtype, weight.dtype)
    with without_autocast(latent.device):
        return F.linear(
            latent.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        )


def _products(latents: list[Tensor], weight: Tensor) -> Tensor:  # [M, N, H]
    """Each latent [N, D_m] times its columns of the weight [H, sum of D_m]."""
    dims = [z.shape[1] for z in latents]
    # not a branch on sizes for torch.export, which would hold the batch to this side of it
    tracing = exporting()
    small = not tracing and latents[0].shape[0] * sum(dims) <= STACK_ELEMENTS
    if small and all(d == dims[0] for d in dims):
        columns = weight.view(-1, len(dims), dims[0]).transpose(0, 1)  # [M, H, D]
        # weights times latents, not the other way round: then torch's two products of the
        # backward are the fast ones, [H, N] @ [N, D] and [D, H] @ [H, N]
        return torch.bmm(columns, torch.stack(latents).mT).mT
    # contiguous blocks: for a strided one torch's backward takes a slow product
    blocks = [block.contiguous() for block in weight.split(dims, dim=1)]
    return torch.stack([F.linear(z, w) for z, w in zip(latents, blocks, strict=True)])


def check_dtype(modality: int, latent: Tensor, weight: Tensor) -> None:
    if latent.dtype != weight.dtype and plain_values(weight):
        raise TypeError(
            f"latents[{modality}] must be {weight.dtype} like the fusion's weight, got "
            f"{latent.dtype}; cast it, or call the loss under the autocast of the encoders"
        )


def check_widths(latents: Sequence[Tensor], latent_dims: Sequence[int]) -> None:
    """M latents [N, D_m] of the widths that were declared."""
    if len(latents) != len(latent_dims):
        raise ValueError(f"latents must hold {len(latent_dims)} modalities, got {len(latents)}")
    for m, (z, width) in enumerate(zip(latents, latent_dims, strict=True)):
        if z.ndim != 2 or z.shape[1] != width:
            raise ValueError(
                f"latents[{m}] must have shape [N, {width}] for a linear fusion with "
                f"latent_dims {list(latent_dims)}, got {list(z.shape)}"
            )


def linear_columns(
    linear: nn.Linear,
    latent_dims: tuple[int, ...],
    head: Callable[[Tensor], Tensor] | None = None,
) -> LinearColumns | None:
    """A linear layer's columns by modality; None if its products are not torch's plain ones."""
    check_in_features(linear, latent_dims)
    weight, bias = read_linear(linear)
    if not (plain_values(weight) and (bias is None or plain_values(bias))):
        return None
    return LinearColumns(weight, bias, latent_dims, head)


def check_in_features(linear: nn.Linear, latent_dims: tuple[int, ...]) -> None:
    if linear.in_features != sum(latent_dims):
        raise ValueError(
            f"latent_dims must add up to the linear layer's in_features = {linear.in_features}, "
            f"got {list(latent_dims)} with sum {sum(latent_dims)}"
        )
