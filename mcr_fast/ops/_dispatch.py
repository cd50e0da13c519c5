"""Autograd and vmap for dispatcher ops at the price of a plain `autograd.Function`.

`torch.library.register_autograd` fills in schema defaults on every call, in time that grows with
the square of the number of arguments: 50 microseconds for an op of thirteen, more than its kernel
takes on a batch of 32. Our schemas have no defaults, so the kernel registered here skips that step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from mcr_fast.ops._modes import has_tangent, refuse_forward_mode, transformed
from mcr_fast.ops._overloads import LIBRARY, find, qualified

FIRST_ARGUMENT = 2  # where an op's own arguments begin in ctx.needs_input_grad


def register_autograd(
    op: str,
    overload: str,
    backward: Callable[..., tuple[Any, ...]],
    *,
    setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
) -> None:
    """Register `backward(ctx, *grads)` for an overload of the op `mcr_fast::<op>`.

    As `torch.library.register_autograd`, for ops whose arguments are positional; the tensors of
    lists are followed, in `backward` one gradient each. torch.func's grad, vjp and jacrev take it
    as they take a built-in op's.
    """
    target = find(op, overload)

    # Of a single level: the dispatcher runs the kernel below once for each transform of torch.func,
    # where `autograd.Function` would want to see all of them at once.
    class Bridge(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, keyset: Any, lists: _Lists | None, *args: Any) -> Any:
            args = args if lists is None else lists.nested(args)
            with _outer_derivatives() if transformed() else nullcontext():
                output = _below_autograd(target, keyset, args)
            if setup_context is not None:
                setup_context(ctx, args, output)
            return output if lists is None else lists.take(output)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
            return None, None, *backward(ctx, *grads)

    def kernel(keyset: Any, *args: Any) -> Any:
        lists = _Lists(args) if has_lists else None
        flat = args if lists is None else _flat(args)
        tensors = [a for a in flat if isinstance(a, Tensor)]
        if has_tangent(*tensors):
            refuse_forward_mode(op.removesuffix("_fwd").removesuffix("_bwd"))
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
            return _below_autograd(target, keyset, args)
        if transformed():
            with _single_level():
                output = apply(keyset, lists, *flat)
        else:
            output = apply(keyset, lists, *flat)
        return output if lists is None else lists.give(output)

    apply: Callable[..., Any] = Bridge.apply  # type: ignore[attr-defined]
    has_lists = "Tensor[]" in str(target._schema)
    LIBRARY.impl(qualified(op, overload), kernel, "Autograd", with_keyset=True)


class _Lists:
    """Where lists of tensors stand among an op's arguments and outputs.

    A node of the graph sees tensors only that are arguments and outputs themselves.
    """

    def __init__(self, args: tuple[Any, ...]):
        self._arguments = _lengths(args)
        self._outputs: list[int | None] = []

    def nested(self, flat: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments with their lists."""
        return _nested(flat, self._arguments)

    def take(self, output: Any) -> Any:
        """The outputs without their lists."""
        if isinstance(output, Tensor):
            return output
        self._outputs = _lengths(output)
        return _flat(output)

    def give(self, flat: Any) -> Any:
        """The outputs as the op returns them."""
        return _nested(flat, self._outputs) if self._outputs else flat


def _lengths(items: tuple[Any, ...]) -> list[int | None]:
    return [len(x) if _is_list(x) else None for x in items]


def _flat(items: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(y for x in items for y in (x if _is_list(x) else (x,)))


def _nested(flat: tuple[Any, ...], lengths: list[int | None]) -> tuple[Any, ...]:
    rest = iter(flat)
    return tuple(
        next(rest) if length is None else [next(rest) for _ in range(length)] for length in lengths
    )


def _is_list(x: Any) -> bool:
    return isinstance(x, (list, tuple)) and all(isinstance(y, Tensor) for y in x)


def register_vmap(op: str, overload: str) -> None:
    """Give an overload of the op `mcr_fast::<op>` a rule for torch.func.vmap: one call a sample.

    A kernel takes a whole batch's pairs at once, and its memory is bounded, which a rule that
    expands the samples would lose. torch's own fallback does the same, but warns, and takes no list
    of tensors.
    """
    target = find(op, overload)

    def kernel(keyset: Any, *args: Any) -> Any:
        # Imported late: they bring in more of torch than a process without vmap ever needs.
        from torch._functorch.autograd_function import custom_function_call_vmap_helper
        from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

        interpreter: Any = retrieve_current_functorch_interpreter()
        return custom_function_call_vmap_helper(
            interpreter,
            lambda info, in_dims, *args: _one_by_one(target, info.batch_size, in_dims, args),
            target,
            *args,
        )

    LIBRARY.impl(qualified(op, overload), kernel, "FuncTorchBatched", with_keyset=True)


def _one_by_one(
    target: Any, batch_size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]
) -> tuple[Any, Any]:
    """The outputs of all samples stacked, and where their dimension is."""
    if batch_size == 0:
        raise ValueError(f"torch.func.vmap over no sample at all: {target} has no result to stack")

    def sample(x: Any, dim: Any, index: int) -> Any:
        if isinstance(x, list):
            return [sample(y, d, index) for y, d in zip(x, dim, strict=True)]
        return x if dim is None else x.select(dim, index)

    made = [
        target(*(sample(x, dim, b) for x, dim in zip(args, in_dims, strict=True)))
        for b in range(batch_size)
    ]
    return _stacked(made)


def _stacked(made: Sequence[Any]) -> tuple[Any, Any]:
    """Tensors, or tuples and lists of them, one a sample; with the dimension 0 for each."""
    if isinstance(made[0], Tensor):
        return torch.stack(tuple(made)), 0
    pairs = [_stacked(parts) for parts in zip(*made, strict=True)]
    kind = type(made[0]) if type(made[0]) in (list, tuple) else tuple
    return kind(x for x, _ in pairs), kind(dim for _, dim in pairs)


def call_backward(overload: Any, *args: Any) -> Any:
    """Call a backward op; past its autograd, which only raises, unless a graph is being made."""
    if torch.is_grad_enabled():
        return overload(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return overload(*args)


@contextmanager
def _outer_derivatives() -> Iterator[None]:
    """Lets transforms outside of this one differentiate, for which torch turns it off here."""
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


@contextmanager
def _single_level() -> Iterator[None]:
    before = torch._C._functorch.get_single_level_autograd_function_allowed()
    torch._C._functorch.set_single_level_autograd_function_allowed(True)
    try:
        yield
    finally:
        torch._C._functorch.set_single_level_autograd_function_allowed(before)


def _below_autograd(overload: Any, keyset: Any, args: Sequence[Any]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)
