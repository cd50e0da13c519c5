"""Where a run of a fusion uses a tensor: inside of which call of which module.

A parameter may serve several modalities, or one of them and what all share. Each use counts for
itself then, and the gradient that comes back through one is told apart from the others'.
"""

import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from mcr_fast.mipd.gradients import nodes_behind

Edge = tuple[Node, int]  # a node, and the number of the input that its gradient goes to


@dataclass
class Call:
    """A call of a module, by the numbers of the nodes that it makes: from start, before stop."""

    part: int  # its id
    nth: int  # of the module's calls in the run
    start: int
    stop: int = sys.maxsize


class Calls:
    """The calls of modules in one run."""

    def __init__(self, parts: Collection[nn.Module]) -> None:
        self._parts = {id(part): part for part in parts}
        self._counts: dict[int, int] = {}
        self._calls: list[Call] = []
        self._open: list[Call] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the calls of a run; no code in it is compiled, which would call no hooks."""
        with ExitStack() as stack:
            for part in self._parts.values():
                stack.callback(part.register_forward_pre_hook(self._enter, prepend=True).remove)
                stack.callback(part.register_forward_hook(self._leave).remove)
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield

    def _enter(self, part: nn.Module, args: Any) -> None:
        nth = self._counts.get(id(part), 0)
        self._counts[id(part)] = nth + 1
        self._open.append(Call(id(part), nth, torch._C._autograd._get_sequence_nr()))
        self._calls.append(self._open[-1])

    def _leave(self, part: nn.Module, args: Any, output: Any) -> None:
        self._open.pop().stop = torch._C._autograd._get_sequence_nr()

    def around(self, node: Node) -> Call | None:
        """The innermost call that made a node."""
        number = node._sequence_nr()
        for call in reversed(self._calls):
            if call.start <= number < call.stop:
                return call
        return None


def uses_in(output: Tensor, started: int) -> dict[Edge, list[Edge]]:
    """The edges of a run's graph by where they lead to, since the number of its first node."""
    found: dict[Edge, list[Edge]] = {}
    for node in nodes_behind(output.grad_fn, set(), started):
        if node._sequence_nr() >= started:
            for i, (behind, nr) in enumerate(node.next_functions):
                if behind is not None:
                    found.setdefault((behind, nr), []).append((node, i))
    return found


class Heard:
    """The gradients that come back to some leaves, use by use, when the output's is taken."""

    def __init__(self, output: Tensor, started: int, leaves: Collection[int], calls: Calls) -> None:
        self._found: dict[int, list[tuple[Call | None, Tensor]]] = {}
        for (behind, _), edges in uses_in(output, started).items():
            leaf = getattr(behind, "variable", None)
            if id(leaf) in leaves:
                for node, i in edges:
                    self._listen(node, i, id(leaf), calls.around(node))

    def _listen(self, node: Node, i: int, leaf: int, call: Call | None) -> None:
        found = self._found.setdefault(leaf, [])

        def hear(to_inputs: tuple[Tensor | None, ...], to_outputs: Any) -> None:
            grad = to_inputs[i]
            if grad is not None:
                found.append((call, grad))

        node.register_hook(hear)

    def of(self, leaf: Tensor) -> list[tuple[Call | None, Tensor]]:
        """The call that a use was in, and the gradient."""
        return self._found.get(id(leaf), [])
