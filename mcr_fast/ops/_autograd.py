"""Autograd for dispatcher ops at the price of a plain `autograd.Function`.

`torch.library.register_autograd` fills in schema defaults on every call, in time that grows with
the square of the number of arguments: 50 microseconds for an op of thirteen, more than its kernel
takes on a batch of 32. Our schemas have no defaults, so the kernel registered here skips that step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mcr_fast.ops._overloads import LIBRARY, find, qualified

FIRST_ARGUMENT = 1  # where an op's own arguments begin in ctx.needs_input_grad


def register_autograd(
    op: str,
    overload: str,
    backward: Callable[..., tuple[Any, ...]],
    *,
    setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
) -> None:
    """Register `backward(ctx, *grads)` for an overload of the op `mcr_fast::<op>`.

    As `torch.library.register_autograd`, for ops whose arguments are positional and hold no lists
    of tensors.
    """
    target = find(op, overload)

    class Bridge(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *args: Any) -> Any:
            output = _below_autograd(target, keyset, args)
            if setup_context is not None:
                setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
            return None, *backward(ctx, *grads)

    def kernel(keyset: Any, *args: Any) -> Any:
        tensors = [a for a in args if isinstance(a, Tensor)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return Bridge.apply(keyset, *args)
        if forward_ad._current_level >= 0 and any(_has_tangent(t) for t in tensors):
            return Bridge.apply(keyset, *args)  # raises: a tangent must not be lost unseen
        return _below_autograd(target, keyset, args)

    LIBRARY.impl(qualified(op, overload), kernel, "Autograd", with_keyset=True)


def call_backward(overload: Any, *args: Any) -> Any:
    """Call a backward op; past its autograd, which only raises, unless a graph is being made."""
    if torch.is_grad_enabled():
        return overload(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return overload(*args)


def _has_tangent(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None


def _below_autograd(overload: Any, keyset: Any, args: Sequence[Any]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)
