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

FIRST = 2  # where an op's own arguments begin in ctx.needs_input_grad
# What runs an op as a node of the graph: of its dispatch keys, None in eager mode, and arguments.
Node = Callable[[Any, tuple[Any, ...]], Any]


def make_node(
    target: Any,  # the overload
    leading: int,  # arguments that may get a gradient, before the others
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., tuple[Tensor | None, ...]],
    run: Callable[..., Any],  # what `backward` calls
    attached: int | None = None,  # outputs that have a gradient, before the others; None: all
    leads_back: bool = False,  # whether the others keep their place in an eager graph
) -> Node:
    """The node of an op, as `_dispatch.register` describes `setup` and `backward`."""
    taken, given = _List(target._schema.arguments[:leading]), _List(target._schema.returns)

    # Of a single level: the dispatcher runs it once for each transform of torch.func, where
    # `autograd.Function` would want to see all of them at once.
    class Function(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, keyset: Any, others: tuple[Any, ...], *flat: Any) -> Any:
            args = (*taken.nested(flat), *others[:-1])
            if keyset is None:
                with torch._C._AutoDispatchBelowAutograd():
                    output = target(*args)
            else:
                with _outer_derivatives() if transformed() else nullcontext():
                    output = below_autograd(target, keyset, args)
            ctx.set_materialize_grads(False)
            ctx.leads_back = leads_back and keyset is None
            setup(ctx, args, output)
            if attached is None or ctx.leads_back:
                return given.flat(output)
            if keyset is None:  # every output that the graph does not see saves a microsecond
                others[-1].extend(output[attached:])
                return output[:attached]
            ctx.mark_non_differentiable(*output[attached:])
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
            needs = ctx.needs_input_grad
            if grads[0] is None and all(grad is None for grad in grads):
                return (None,) * len(needs)
            pairs = zip(backward(ctx, run, *grads), needs[FIRST:], strict=True)
            return None, None, *[grad if need else None for grad, need in pairs]

    apply: Callable[..., Any] = Function.apply  # type: ignore[attr-defined]

    def node(keyset: Any, args: tuple[Any, ...]) -> Any:
        constant: list[Tensor] = []
        made = apply(keyset, (*args[leading:], constant), *taken.flat(args[:leading]))
        return (*made, *constant) if constant else given.nested(made)

    return node


def below_autograd(target: Any, keyset: Any, args: tuple[Any, ...]) -> Any:
    """Run an op without a node, on from the dispatch keys where autograd was met."""
    with torch._C._AutoDispatchBelowAutograd():
        return target.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def autograd_kernel(op: str, target: Any, node: Node) -> Callable[..., Any]:
    """The kernel of an overload for the dispatch key Autograd.

    torch.func's grad, vjp and jacrev take it as they take a built-in op's.
    """

    def kernel(keyset: Any, *args: Any) -> Any:
        if not torch.is_grad_enabled() and forward_ad._current_level < 0:
            return below_autograd(target, keyset, args)  # as compiled graphs call it
        tensors = [x for a in args for x in (a if isinstance(a, list) else (a,))]
        tensors = [x for x in tensors if isinstance(x, Tensor)]
        if has_tangent(*tensors):
            refuse_forward_mode(op)
        if not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
            return below_autograd(target, keyset, args)
        with _single_level() if transformed() else nullcontext():
            return node(keyset, args)

    return kernel


class _List:
    """The one list of tensors among an op's arguments or outputs, if it has one.

    A node of the graph sees tensors only that are arguments and outputs themselves.
    """

    def __init__(self, arguments: Sequence[Any]):
        places = [i for i, a in enumerate(arguments) if str(a.type) == "List[Tensor]"]
        assert len(places) <= 1, "where would one list end and the next begin?"
        self._at = places[0] if places else -1
        self._after = len(arguments) - 1 - self._at

    def flat(self, items: Any) -> Any:
        """The items, those of the list in its place."""
        at = self._at
        if at < 0:
            return items
        return (*items[:at], *items[at], *items[at + 1 :])

    def nested(self, flat: Any) -> Any:
        """The items as they were before `flat`."""
        at = self._at
        if at < 0:
            return flat
        end = len(flat) - self._after
        return (*flat[:at], list(flat[at:end]), *flat[end:])


def vmap_kernel(target: Any) -> Callable[..., Any]:
    """A rule for torch.func.vmap, the kernel for its dispatch key: one call a sample.

    A kernel takes a whole batch's pairs at once, and its memory is bounded, which a rule that
    expands the samples would lose. torch's own fallback does the same, but warns, and takes no list
    of tensors.
    """

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

    return kernel


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
