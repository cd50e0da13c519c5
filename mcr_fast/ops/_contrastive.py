"""Autograd of ops whose forward takes the gradient: `<op>_fwd -> (loss, unit_grad)`, `<op>_bwd`.

The contrastive losses are such ops: one scalar out of one matrix [L, D], and all that the gradient
needs is at hand while the value is computed. The backward scales and casts.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from mcr_fast._process import first_time
from mcr_fast.ops._autograd import call_backward, register_autograd, register_vmap
from mcr_fast.ops._overloads import find, overloads, qualified
from mcr_fast.reference._similarity import accumulation_dtype


def raise_double_backward(op: str) -> NoReturn:
    """What the backward of every backward op does."""
    raise RuntimeError(
        f"{op} cannot be differentiated twice: its backward is a compiled kernel; "
        'use backend="reference" where second derivatives are needed'
    )


def register_unit_grad_op(op: str) -> None:
    """Give every overload of `<op>_fwd` and `<op>_bwd` its fake and its autograd."""
    for overload in overloads(op):
        _register(op, overload)


def _register(op: str, overload: str) -> None:
    def forward_fake(
        embeddings: Tensor,  # [L, D]
        labels: Tensor,
        present: Tensor | None,
        temperature: float,
        want_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = accumulation_dtype(embeddings.dtype)
        shape = embeddings.shape if want_grad else (0, 0)
        return embeddings.new_empty((), dtype=dtype), embeddings.new_empty(shape, dtype=dtype)

    def backward_fake(grad: Tensor, unit_grad: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.empty_like(unit_grad, dtype=dtype)

    def setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        # The unit gradient stays differentiable on purpose: its graph leads a second backward to
        # the error below, where a constant would let it pass with wrong numbers.
        ctx.save_for_backward(output[1])
        ctx.dtype = inputs[0].dtype
        ctx.set_materialize_grads(False)

    def forward_backward(
        ctx: Any, grad: Tensor | None, grad_unit_grad: Tensor | None
    ) -> tuple[Tensor | None, None, None, None, None]:
        if grad_unit_grad is not None:
            raise_double_backward(op)
        if grad is None:
            return None, None, None, None, None
        (unit_grad,) = ctx.saved_tensors
        backward = find(f"{op}_bwd", overload)
        return call_backward(backward, grad, unit_grad, ctx.dtype), None, None, None, None

    def backward_backward(ctx: Any, grad: Tensor) -> NoReturn:
        raise_double_backward(op)

    if not first_time(qualified(op, overload)):
        return
    torch.library.register_fake(qualified(f"{op}_fwd", overload), forward_fake)
    torch.library.register_fake(qualified(f"{op}_bwd", overload), backward_fake)
    register_autograd(f"{op}_fwd", overload, forward_backward, setup_context=setup_forward)
    register_autograd(f"{op}_bwd", overload, backward_backward)
    for name in (f"{op}_fwd", f"{op}_bwd"):
        register_vmap(name, overload)
