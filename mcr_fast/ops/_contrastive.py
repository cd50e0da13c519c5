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
        ctx: Any, run: Callable[..., Tensor], grad: Tensor | None, grad_unit_grad: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if grad_unit_grad is not None:
            raise_double_backward(op)
        return (run(grad, *ctx.saved_tensors, ctx.dtype),)

    register(
        op,
        differentiable=1,
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
    # The unit gradient stays differentiable on purpose: its graph leads a second backward to an
    # error, where a constant would let it pass with wrong numbers.
    ctx.save_for_backward(output[1])
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
