"""One run of a fusion by the regularizer: tensors of its own to write to, and its gradients.

The gradient of a run is taken at once and goes no further than the run: to the rows it was given,
and to the edges where other tensors entered it, parameters or whatever else the fusion uses. What
lies behind those, hooks included, belongs to the caller's backward.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_Key = tuple[Node, int]


class _Own(torch.autograd.Function):
    """Gives rows that nobody else holds a place in a graph, as a tensor that may be written to."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, rows: Tensor) -> Tensor:
        ctx.mark_dirty(rows)
        return rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise AssertionError("the gradient is taken at the edge before it")


def own(rows: Tensor, wanted: bool) -> tuple[Tensor, GradientEdge | None]:
    """Fresh rows as a fusion gets them, and where their gradient arrives if it is wanted.

    A leaf could not be written to in place; the edge stays what it is when that happens.
    """
    if not (wanted and torch.is_grad_enabled()):
        return rows, None
    rows = _Own.apply(rows.new_empty(0).requires_grad_(), rows)
    return rows, get_gradient_edge(rows)


class Pulled(NamedTuple):
    """Gradients of one run."""

    rows: list[Tensor | None]  # one an edge
    used: list[tuple[Tensor, Tensor]]  # the other tensors that the fusion used, and theirs


class Runs:
    """Runs of one fusion in one step, and the caller's tensors with a graph that it uses."""

    def __init__(self) -> None:
        self._foreign: dict[_Key, Tensor] = {}

    def pull(
        self,
        run: Callable[[], tuple[list[GradientEdge | None], Tensor]],
        cotangent_of: Callable[[Tensor], Tensor | None],
        want_used: bool,
    ) -> Pulled | None:
        """Run, and go back from the output by the cotangent made of it; None: no way back."""
        started = torch._C._autograd._get_sequence_nr()
        edges, output = run()
        cotangent = cotangent_of(output)
        if cotangent is None or not output.requires_grad:
            return None
        wanted = [edge for edge in edges if edge is not None]
        used = self._used(output, wanted, started, run) if want_used else []
        if not wanted and not used:
            return None
        with _unheard([x for x, _ in used]):
            inputs: list[Any] = [*wanted, *(edge for _, edge in used)]
            grads = torch.autograd.grad(
                output,
                inputs,
                cotangent.to(output.dtype),
                allow_unused=True,
            )
        found = iter(grads)
        rows = [None if edge is None else next(found) for edge in edges]
        used_grads = zip([x for x, _ in used], found, strict=True)
        return Pulled(rows, [(x, grad) for x, grad in used_grads if grad is not None])

    def _used(
        self,
        output: Tensor,
        edges: Sequence[GradientEdge],
        started: int,
        run: Callable[[], Any],
    ) -> list[tuple[Tensor, GradientEdge | Tensor]]:
        """The tensors that entered the run and want a gradient, and where theirs arrives."""
        leaves, foreign = _entered(output, [edge.node for edge in edges], started)
        if any(key not in self._foreign for key in foreign):
            with _Watch(started) as watch:
                run()
            self._foreign.update(watch.seen)
        missing = [key for key in foreign if key not in self._foreign]
        if missing:
            raise ValueError(
                "fusion uses a tensor that was computed with gradients outside of it and that only "
                f"compiled code sees ({missing[0][0].name()}); compute it inside of the fusion, "
                "detach it, or do not compile the fusion"
            )
        entered: list[tuple[Tensor, GradientEdge | Tensor]] = [(x, x) for x in leaves]
        return entered + [(self._foreign[key], GradientEdge(*key)) for key in foreign]


def _entered(output: Tensor, stop: Sequence[Node], started: int) -> tuple[list[Tensor], list[_Key]]:
    """Leaves that a run's output depends on, and edges to nodes that are older than the run."""
    leaves: dict[int, Tensor] = {}
    foreign: dict[_Key, None] = {}
    seen = set(stop)
    pending: list[_Key] = [(output.grad_fn, output.output_nr)] if output.grad_fn else []
    while pending:
        node, number = pending.pop()
        leaf = getattr(node, "variable", None)  # only AccumulateGrad nodes have one
        if isinstance(leaf, Tensor):
            leaves[id(leaf)] = leaf
        elif node._sequence_nr() < started:
            foreign[node, number] = None
        elif node not in seen:
            seen.add(node)
            pending += [(parent, nr) for parent, nr in node.next_functions if parent is not None]
    return list(leaves.values()), list(foreign)


def reaches(output: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether the output's graph leads to one of these tensors."""
    nodes = {x.grad_fn for x in inputs if x.grad_fn is not None}
    leaves = {id(x) for x in inputs if x.grad_fn is None}
    seen: set[Node] = set()
    pending = [output.grad_fn] if output.grad_fn else []
    while pending:
        node = pending.pop()
        if node in nodes or id(getattr(node, "variable", None)) in leaves:
            return True
        if node not in seen:
            seen.add(node)
            pending += [parent for parent, _ in node.next_functions if parent is not None]
    return any(output is x for x in inputs)


class _Watch(TorchFunctionMode):
    """Sees the tensors with a graph older than the run that torch's functions are called with."""

    def __init__(self, started: int) -> None:
        super().__init__()
        self.started = started
        self.seen: dict[_Key, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tree_leaves((args, kwargs)):
            node = x.grad_fn if isinstance(x, Tensor) else None
            if node is not None and node._sequence_nr() < self.started:
                self.seen[node, x.output_nr] = x
        return func(*args, **(kwargs or {}))


@contextmanager
def _unheard(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Without the tensors' gradient hooks, which the caller's backward will call."""
    kept = [(x._backward_hooks, dict(x._backward_hooks)) for x in tensors if x._backward_hooks]
    for hooks, _ in kept:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.update(before)


@contextmanager
def fresh_casts() -> Iterator[None]:
    """Autocast without its cache: a parameter's cast in it has a graph of the caller's."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
