"""How an op meets torch's dispatcher: its overloads, what is registered for them, calling them.

The compiled library's overload is the default one, Triton's is called `triton` and defined here, so
that it needs no compiled library and stands beside any kernel that one has for the same device.
Both have the same schema, fake and autograd.
"""

import importlib
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mcr_fast import _libraries as libraries
from mcr_fast._process import first_time, kept
from mcr_fast.ops._autograd import Node, autograd_kernel, make_node, vmap_kernel
from mcr_fast.ops._modes import recorded
from mcr_fast.ops.registry import BLOCKS, INNER, OPS

LIBRARY = kept("library", lambda: torch.library.Library("mcr_fast", "FRAGMENT"))
_NODES: dict[Any, Node] = kept("nodes", dict)  # of every overload


def find(name: str, backend: str) -> Any:
    """The overload of `mcr_fast::<name>` that a backend other than the reference has."""
    packet = getattr(torch.ops.mcr_fast, name)
    return packet.triton if backend == "triton" else packet.default


def call(target: Any, *args: Any, graph: bool) -> Any:
    """Run an overload, as a node of the graph or not.

    Straight in eager mode: the dispatcher would go from Python to Python by way of C++.
    """
    if recorded() or forward_ad._current_level >= 0:
        return target(*args)
    if graph:
        return _NODES[target](None, args)
    with torch._C._AutoDispatchBelowAutograd():
        return target(*args)


def register(
    op: str,
    *,
    differentiable: int,
    forward_fake: Callable[..., Any],
    backward_fake: Callable[..., Any],
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., tuple[Tensor | None, ...]],
    attached: int | None = None,
    leads_back: bool = False,
    triton_backward_fake: Callable[..., Any] | None = None,
) -> None:
    """Give every overload of `<op>_fwd` and `<op>_bwd` its fake, its autograd and its vmap.

    The op's first arguments, as many as are `differentiable`, may get gradients. `setup(ctx,
    inputs, output)` saves what `backward(ctx, run, *grads)` reads, which is called unless all
    `grads` are None. It calls `run`, which is `<op>_bwd`, and returns the gradients, each tensor of
    a list its own. Those that are not wanted are dropped. Only the first outputs, as many as are
    `attached`, can have gradients; None: all. With `leads_back` the others are outputs of the node
    all the same in eager mode, so that what is made of them leads a second backward there, to an
    error; `ctx.leads_back` says whether it is so. Triton's backward may lay its outputs out in a
    way of its own, which only a fake of its own can say.
    """
    for backend in _with_overloads(op):
        forward, reverse = find(f"{op}_fwd", backend), find(f"{op}_bwd", backend)
        if not first_time(forward.name()):
            continue

        def run(*args: Any, target: Any = reverse) -> Any:
            return call(target, *args, graph=torch.is_grad_enabled())

        def none_twice(ctx: Any, *_: Any) -> NoReturn:
            raise_double_backward(op)

        torch.library.register_fake(forward.name(), forward_fake)
        of_triton = triton_backward_fake if backend == "triton" else None
        torch.library.register_fake(reverse.name(), of_triton or backward_fake)
        every = len(reverse._schema.arguments)
        outputs = (attached, leads_back)
        _NODES[forward] = make_node(forward, differentiable, setup, backward, run, *outputs)
        _NODES[reverse] = make_node(reverse, every, lambda *_: None, none_twice, run)
        for target in (forward, reverse):
            kernel = autograd_kernel(op, target, _NODES[target])
            LIBRARY.impl(target.name(), kernel, "Autograd", with_keyset=True)
            LIBRARY.impl(target.name(), vmap_kernel(target), "FuncTorchBatched", with_keyset=True)


def register_block(op: str, fake: Callable[..., Any]) -> None:
    """Give every overload of an op of `BLOCKS` its fake, its vmap, and an autograd that raises."""

    def refuse(*_: Any) -> NoReturn:
        raise_no_gradient(op)

    _define_triton("contrastive_blocks", op, BLOCKS[op].forward)
    compiled = ["cpu"] if libraries.has_kernel(op, "CPU") else []
    for backend in (*compiled, "triton"):
        target = find(op, backend)
        if not first_time(target.name()):
            continue
        torch.library.register_fake(target.name(), fake)
        kernel = autograd_kernel(op, target, refuse)
        LIBRARY.impl(target.name(), kernel, "Autograd", with_keyset=True)
        LIBRARY.impl(target.name(), vmap_kernel(target), "FuncTorchBatched", with_keyset=True)


def raise_no_gradient(op: str) -> NoReturn:
    """What an op does with tensors that want gradients which it does not make."""
    raise RuntimeError(
        f"{op} is not differentiable, and would give constants: call it under torch.no_grad() "
        "with what is differentiated elsewhere"
    )


def raise_double_backward(op: str) -> NoReturn:
    """What the backward of every backward op does."""
    raise RuntimeError(
        f"{op} cannot be differentiated twice: its backward is a compiled kernel; "
        'use backend="reference" where second derivatives are needed'
    )


def _with_overloads(op: str) -> list[str]:
    """Backends whose overloads an op has in this process, Triton's defined if it was not."""
    found = ["cpu"] if libraries.has_kernel(f"{op}_fwd", "CPU") else []
    row = (OPS | INNER)[op]
    if "triton" in row.backends:
        _define_triton(op, f"{op}_fwd", row.forward)
        _define_triton(op, f"{op}_bwd", row.backward)
        found.append("triton")
    return found


def _define_triton(module: str, name: str, schema: str) -> None:
    if not first_time(f"define {name}.triton"):
        return

    def kernel(*args: Any) -> Any:
        """The launcher, imported when it is first called."""
        launch = getattr(importlib.import_module(f"mcr_fast.kernels.{module}"), name)
        first = next(x for x in args if isinstance(x, Tensor))
        # kernels start on the current stream of the tensors' own device; for CPU tensors a no-op
        with torch.cuda.device_of(first):
            return launch(*args)

    LIBRARY.define(f"{name}.triton{schema}")
    LIBRARY.impl(f"{name}.triton", kernel, "CUDA")
    if libraries.triton_interpreted():
        LIBRARY.impl(f"{name}.triton", kernel, "CPU")
