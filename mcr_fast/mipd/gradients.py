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
from torch.utils._pytree import tree_map_only

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
    """Runs of one fusion in one step.

    Tensors with a graph of the caller's that the fusion uses are replaced in the runs by leaves, so
    that no gradient goes past them, nor past one of them to another.
    """

    def __init__(self) -> None:
        self._stand_ins: dict[_Key, tuple[Tensor, Tensor]] = {}  # the caller's, and ours
        self._cut = False

    def pull(
        self,
        run: Callable[[], tuple[list[GradientEdge | None], Tensor]],
        cotangent_of: Callable[[Tensor], Tensor | None],
        want_used: bool,
    ) -> Pulled | None:
        """Run, and go back from the output by the cotangent made of it; None: no way back."""
        started = torch._C._autograd._get_sequence_nr()
        edges, output = self._run(run, started)
        stop = [edge.node for edge in edges if edge is not None]
        leaves, foreign = _entered(output, stop, started) if want_used else ([], [])
        if foreign and not self._cut:
            self._cut = True
            edges, output = self._run(run, started)
            stop = [edge.node for edge in edges if edge is not None]
            leaves, foreign = _entered(output, stop, started)
        if foreign:
            raise ValueError(
                "fusion uses a tensor that was computed with gradients outside of it and that only "
                f"compiled code sees ({foreign[0][0].name()}); compute it inside of the fusion, "
                "detach it, or do not compile the fusion"
            )
        cotangent = cotangent_of(output)
        if cotangent is None or not output.requires_grad:
            return None
        wanted = [edge for edge in edges if edge is not None]
        if not wanted and not leaves:
            return None
        with _unheard(leaves):
            inputs: list[Any] = [*wanted, *leaves]
            grads = torch.autograd.grad(
                output,
                inputs,
                cotangent.to(output.dtype),
                allow_unused=True,
            )
        found = iter(grads)
        rows = [None if edge is None else next(found) for edge in edges]
        owners = {id(ours): theirs for theirs, ours in self._stand_ins.values()}
        used = [
            (owners.get(id(x), x), grad)
            for x, grad in zip(leaves, found, strict=True)
            if grad is not None
        ]
        return Pulled(rows, used)

    def _run(
        self, run: Callable[[], tuple[list[GradientEdge | None], Tensor]], started: int
    ) -> tuple[list[GradientEdge | None], Tensor]:
        if not self._cut:
            return run()
        with _Cut(self._stand_ins, started):
            return run()


def _entered(output: Tensor, stop: Sequence[Node], started: int) -> tuple[list[Tensor], list[_Key]]:
    """Leaves that a run's output depends on, and edges to nodes that are older than the run."""
    leaves: dict[int, Tensor] = {}
    foreign: dict[_Key, None] = {}
    seen = set(stop)
    pending: list[_Key] = [(output.grad_fn, output.output_nr)] if output.grad_fn else []
    while pending:
        node, number = pending.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and node.name() == "torch::autograd::AccumulateGrad":
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


class _Cut(TorchFunctionMode):
    """Gives torch's functions a leaf in place of every tensor whose graph is older than the run."""

    def __init__(self, stand_ins: dict[_Key, tuple[Tensor, Tensor]], started: int) -> None:
        super().__init__()
        self.stand_ins, self.started = stand_ins, started

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, self._stand_in, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _stand_in(self, x: Tensor) -> Tensor:
        node = x.grad_fn
        if node is None or node._sequence_nr() >= self.started:
            return x
        key = node, x.output_nr
        if key not in self.stand_ins:
            self.stand_ins[key] = x, x.detach().requires_grad_()
        return self.stand_ins[key][1]


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
