"""Reconstruction loss: fake, autograd and the choice of backend."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mcr_fast.ops._autograd import call_backward
from mcr_fast.ops._backend import resolve
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
    if not torch.compiler.is_compiling():
        _refuse_tangents(*latents, reconstruction)
    forward = of_backend("reconstruction_loss_fwd", chosen)
    loss: Tensor = forward(list(latents), reconstruction)
    return loss


def _refuse_tangents(*tensors: Tensor) -> None:
    """Forward-mode derivatives would be dropped without a word."""
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError(
            "reconstruction_loss has no forward mode derivative: its kernels are compiled; "
            'use backend="reference" for it'
        )


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
    def forward_backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], Tensor]:
        *latents, reconstruction = ctx.saved_tensors
        grad_latents, grad_reconstruction = call_backward(
            find("reconstruction_loss_bwd", overload), grad, latents, reconstruction
        )
        return grad_latents, grad_reconstruction

    forward = qualified("reconstruction_loss_fwd", overload)
    backward = qualified("reconstruction_loss_bwd", overload)
    torch.library.register_fake(forward, _forward_fake)
    torch.library.register_fake(backward, _backward_fake)
    # torch's own, unlike the other ops: it follows the tensors of lists
    torch.library.register_autograd(forward, forward_backward, setup_context=_setup_forward)
    torch.library.register_autograd(backward, _backward_backward)


for _overload in overloads("reconstruction_loss"):
    _register(_overload)
