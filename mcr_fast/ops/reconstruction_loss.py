"""Reconstruction loss: fake, autograd and the choice of backend."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from mcr_fast._process import first_time
from mcr_fast.ops._autograd import call_backward, register_autograd, register_vmap
from mcr_fast.ops._backend import resolve
from mcr_fast.ops._modes import refuse_batched
from mcr_fast.ops._overloads import find, of_backend, overloads, qualified
from mcr_fast.ops._unit_grad import raise_double_backward
from mcr_fast.reference._similarity import accumulation_dtype
from mcr_fast.reference.reconstruction_loss import reconstruction_loss_reference


def reconstruction_loss(
    latents: Sequence[Tensor],  # M tensors [N, D_m]
    reconstruction: Tensor,  # [N, sum of D_m]
    *,
    backend: str | None,
) -> Tensor:  # []
    """Mean over all elements of (reconstruction - [Z_1 .. Z_M])^2."""
    dtypes = (reconstruction.dtype, *(z.dtype for z in latents))
    elements = reconstruction.numel()
    chosen = resolve("reconstruction_loss", backend, reconstruction.device, *dtypes, size=elements)
    if chosen == "reference":
        return reconstruction_loss_reference(latents, reconstruction)
    forward = of_backend("reconstruction_loss_fwd", chosen)
    loss: Tensor = forward(list(latents), reconstruction)
    return loss


def _forward_fake(latents: list[Tensor], reconstruction: Tensor) -> Tensor:
    dtypes = (z.dtype for z in latents)
    return reconstruction.new_empty((), dtype=accumulation_dtype(reconstruction.dtype, *dtypes))


def _backward_fake(
    grad: Tensor, latents: list[Tensor], reconstruction: Tensor
) -> tuple[list[Tensor], Tensor]:
    grad_latents = [z.new_empty(z.shape) for z in latents]
    return grad_latents, reconstruction.new_empty(reconstruction.shape)


def _setup_forward(ctx: Any, inputs: tuple[list[Tensor], Tensor], output: Tensor) -> None:
    latents, reconstruction = inputs
    ctx.save_for_backward(*latents, reconstruction)


def _backward_backward(ctx: Any, *grads: Any) -> NoReturn:
    raise_double_backward("reconstruction_loss")


def _register(overload: str) -> None:
    def forward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        refuse_batched("reconstruction_loss", grad)
        *latents, reconstruction = ctx.saved_tensors
        grad_latents, grad_reconstruction = call_backward(
            find("reconstruction_loss_bwd", overload), grad, latents, reconstruction
        )
        return *grad_latents, grad_reconstruction

    if not first_time(qualified("reconstruction_loss", overload)):
        return
    forward, backward = "reconstruction_loss_fwd", "reconstruction_loss_bwd"
    torch.library.register_fake(qualified(forward, overload), _forward_fake)
    torch.library.register_fake(qualified(backward, overload), _backward_fake)
    register_autograd(forward, overload, forward_backward, setup_context=_setup_forward)
    register_autograd(backward, overload, _backward_backward)
    for name in (forward, backward):
        register_vmap(name, overload)


for _overload in overloads("reconstruction_loss"):
    _register(_overload)
