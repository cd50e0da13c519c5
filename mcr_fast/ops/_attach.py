"""Attaches gradients that are known already to a loss: for the generic-fusion engine.

Python only, so that it works on any device and without the compiled library.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from mcr_fast._process import kept
from mcr_fast.ops._modes import refuse_batched


def _attach_gradients(
    value: Tensor,  # []
    inputs: list[Tensor],
    grads: list[Tensor],  # of the inputs' shapes
) -> Tensor:  # []
    """Return `value`, whose gradient to inputs[k] is grads[k] in the dtype of the input."""
    return value.clone()


def _attach_gradients_bwd(grad: Tensor, inputs: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    """Scale the attached gradients by the upstream one and cast them to the inputs' dtypes."""
    return [(grad * g).to(x.dtype) for x, g in zip(inputs, grads, strict=True)]


def _forward_fake(value: Tensor, inputs: list[Tensor], grads: list[Tensor]) -> Tensor:
    return torch.empty_like(value)


def _backward_fake(grad: Tensor, inputs: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(g, dtype=x.dtype) for x, g in zip(inputs, grads, strict=True)]


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, attached, grads = inputs
    # The inputs are kept for their dtypes, and because their graph leads a second backward to the
    # error below; the gradients alone are constants, and would let it pass with wrong numbers. The
    # inputs' values do not matter: the caller may change them in place.
    ctx.attached = attached
    ctx.save_for_backward(*grads)


def _forward_backward(ctx: Any, grad: Tensor) -> tuple[None, list[Tensor], list[None]]:
    refuse_batched("MCRLoss", grad, way_out="this fusion is run on its own; take vectorize=False")
    grads = list(ctx.saved_tensors)
    return None, attach_gradients_bwd(grad, ctx.attached, grads), [None] * len(grads)


def _backward_backward(ctx: Any, *grads: Any) -> NoReturn:
    raise RuntimeError(
        "MCRLoss cannot be differentiated twice: its gradient is attached as a constant"
    )


def _define() -> tuple[Any, Any]:
    custom_op = torch.library.custom_op
    forward = custom_op("mcr_fast::attach_gradients", _attach_gradients, mutates_args=())
    backward = custom_op("mcr_fast::attach_gradients_bwd", _attach_gradients_bwd, mutates_args=())
    forward.register_fake(_forward_fake)
    backward.register_fake(_backward_fake)
    forward.register_autograd(_forward_backward, setup_context=_setup_forward)
    backward.register_autograd(_backward_backward)
    return forward, backward


attach_gradients, attach_gradients_bwd = kept("attach_gradients", _define)
