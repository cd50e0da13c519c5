"""Reconstruction loss: fake, autograd and the choice of backend."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mcr_fast.ops._backend import resolve
from mcr_fast.ops._dispatch import call, find, register
from mcr_fast.ops._modes import refuse_batched
from mcr_fast.reference._similarity import accumulation_dtype
from mcr_fast.reference.reconstruction_loss import reconstruction_loss_reference


def _forward_fake(latents: list[Tensor], reconstruction: Tensor) -> Tensor:
    dtypes = (z.dtype for z in latents)
    return reconstruction.new_empty((), dtype=accumulation_dtype(reconstruction.dtype, *dtypes))


def _backward_fake(
    grad: Tensor, latents: list[Tensor], reconstruction: Tensor
) -> tuple[list[Tensor], Tensor]:
    grad_latents = [z.new_empty(z.shape) for z in latents]
    return grad_latents, reconstruction.new_empty(reconstruction.shape)


def _setup(ctx: Any, inputs: tuple[list[Tensor], Tensor], output: Tensor) -> None:
    latents, reconstruction = inputs
    ctx.save_for_backward(*latents, reconstruction)


def _backward(ctx: Any, run: Callable[..., Any], grad: Tensor) -> tuple[Tensor, ...]:
    refuse_batched("reconstruction_loss", grad)
    *latents, reconstruction = ctx.saved_tensors
    grad_latents, grad_reconstruction = run(grad, latents, reconstruction)
    return *grad_latents, grad_reconstruction


register(
    "reconstruction_loss",
    differentiable=2,
    forward_fake=_forward_fake,
    backward_fake=_backward_fake,
    setup=_setup,
    backward=_backward,
)


def reconstruction_loss(
    latents: Sequence[Tensor],  # M tensors [N, D_m]
    reconstruction: Tensor,  # [N, sum of D_m]
    *,
    backend: str | None,
) -> Tensor:  # []
    """Mean over all elements of (reconstruction - [Z_1 .. Z_M])^2."""
    dtypes = (reconstruction.dtype, *(z.dtype for z in latents))
    chosen = resolve("reconstruction_loss", backend, reconstruction.device, *dtypes)
    if chosen == "reference":
        return reconstruction_loss_reference(latents, reconstruction)
    graph = torch.is_grad_enabled() and any(x.requires_grad for x in (*latents, reconstruction))
    loss: Tensor = call(
        find("reconstruction_loss_fwd", chosen), list(latents), reconstruction, graph=graph
    )
    return loss
