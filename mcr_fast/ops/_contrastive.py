"""What the contrastive losses share: one scalar out of one matrix [L, D].

All that the gradient needs is at hand while the value is computed; the backward scales and casts.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mcr_fast.ops._backend import resolve
from mcr_fast.ops._dispatch import call, find, raise_double_backward, register
from mcr_fast.ops._limits import Call
from mcr_fast.ops._modes import wants_gradient
from mcr_fast.pairing import of_all_rows
from mcr_fast.reference._similarity import accumulation_dtype


def register_contrastive(op: str) -> None:
    """Register `<op>_fwd -> (loss, unit_grad)` and `<op>_bwd`."""

    def backward(
        ctx: Any, run: Callable[..., Tensor], grad: Tensor | None, to_unit_grad: Tensor | None
    ) -> tuple[Tensor]:
        if to_unit_grad is not None or grad is None:
            raise_double_backward(op)
        *loss, unit_grad = ctx.saved_tensors
        if loss and torch.is_grad_enabled():
            # The unit gradient is a constant here, which would let a second backward pass with
            # wrong numbers. The loss, whose value is not used, leads it to the error of <op>_bwd.
            grad = torch.where(torch.ones_like(grad, dtype=torch.bool), grad, loss[0])
        return (run(grad, unit_grad, ctx.dtype),)

    register(
        op,
        differentiable=1,
        attached=1,
        leads_back=True,
        forward_fake=_forward_fake,
        backward_fake=lambda grad, unit_grad, dtype: torch.empty_like(unit_grad, dtype=dtype),
        setup=_setup,
        backward=backward,
    )


def _forward_fake(
    embeddings: Tensor,  # [L, D]
    labels: Tensor,
    present: Tensor | None,
    temperature: float,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(embeddings.dtype)
    shape = embeddings.shape if want_grad else (0, 0)
    return embeddings.new_empty((), dtype=dtype), embeddings.new_empty(shape, dtype=dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    # Not the loss where that can be helped: `loss += ...` changes what is saved.
    ctx.save_for_backward(*(output[1:] if ctx.leads_back else output))
    ctx.dtype = inputs[0].dtype


def contrastive(
    op: str,
    reference: Callable[..., Tensor],
    embeddings: Tensor,  # [L, D]
    labels: Tensor,  # [L] int64 codes, or [N] of all modalities
    present: Tensor | None,  # [L] bool, or [N, M]
    temperature: float,
    backend: str | None,
) -> Tensor:  # []
    """The loss, by whichever backend serves."""
    rows, width = embeddings.shape
    given = Call(size=rows, width=width)
    chosen = resolve(op, backend, embeddings.device, embeddings.dtype, call=given)
    if chosen == "reference":  # kernels read what is known of all modalities
        labels, present = of_all_rows(rows, labels, present)
        return reference(embeddings, labels, present, temperature)
    want = wants_gradient(embeddings)
    inputs = (embeddings, labels, present, temperature, want)
    loss: Tensor = call(find(f"{op}_fwd", chosen), *inputs, graph=want)[0]
    return loss
