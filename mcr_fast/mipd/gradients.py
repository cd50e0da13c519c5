"""Gradients of the regularizer's own runs of a fusion: where they end, and their sums.

Every run gets tensors of its own to write to. Its gradient is taken at once and goes no further
than the run: to the rows it was given, and to the edges where other tensors entered it, parameters
or whatever else the fusion uses. What lies behind those, hooks included, belongs to the caller's
backward.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from mcr_fast.reference._similarity import accumulation_dtype

_Key = tuple[Node, int]
_Run = Callable[[], tuple[list[GradientEdge | None], Tensor]]


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
        self, run: _Run, cotangent_of: Callable[[Tensor], Tensor | None], want_used: bool
    ) -> Pulled | None:
        """Run, and go back from the output by the cotangent made of it; None: no way back."""
        started = torch._C._autograd._get_sequence_nr()
        edges, output = self._run(run, started)
        leaves, foreign = _entered(output, edges, started) if want_used else ([], [])
        if foreign and not self._cut:
            self._cut = True
            edges, output = self._run(run, started)
            leaves, foreign = _entered(output, edges, started)
        if foreign:
            raise ValueError(
                "fusion uses a tensor that was computed with gradients outside of it and that only "
                f"compiled code sees ({foreign[0].name()}); compute it inside of the fusion, "
                "detach it, or do not compile the fusion"
            )
        cotangent = cotangent_of(output)
        inputs: list[Any] = [*(edge for edge in edges if edge is not None), *leaves]
        if cotangent is None or not output.requires_grad or not inputs:
            return None
        with _unheard(leaves):
            cotangent = cotangent.to(output.dtype)
            found = iter(_gradients(output, inputs, cotangent))
        rows = [None if edge is None else next(found) for edge in edges]
        theirs = {id(ours): x for x, ours in self._stand_ins.values()}
        used = zip((theirs.get(id(x), x) for x in leaves), found, strict=True)
        return Pulled(rows, [(x, grad) for x, grad in used if grad is not None])

    def _run(self, run: _Run, started: int) -> tuple[list[GradientEdge | None], Tensor]:
        if not self._cut:
            return run()
        with _Cut(self._stand_ins, started):
            return run()


def _gradients(output: Tensor, inputs: list[Any], cotangent: Tensor) -> Sequence[Tensor | None]:
    try:
        return torch.autograd.grad(output, inputs, cotangent, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise RuntimeError(
            "fusion holds a checkpoint with use_reentrant=True, which cannot be differentiated "
            "inside MCRLoss's forward; take use_reentrant=False (the loss frees what it runs "
            "anyway), or wrap the call of the loss instead"
        ) from error


def _entered(
    output: Tensor, edges: Sequence[GradientEdge | None], started: int
) -> tuple[list[Tensor], list[Node]]:
    """Leaves that a run's output depends on, and nodes that are older than the run."""
    leaves: dict[int, Tensor] = {}
    foreign: list[Node] = []
    rows = {edge.node for edge in edges if edge is not None}
    for node in nodes_behind(output.grad_fn, rows, started):
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and node.name() == "torch::autograd::AccumulateGrad":
            leaves[id(leaf)] = leaf
        elif node._sequence_nr() < started:
            foreign.append(node)
    return list(leaves.values()), foreign


def nodes_behind(node: Node | None, seen: set[Node], started: int = 0) -> Iterator[Node]:
    """A node and all it depends on, but for those seen; not beyond the older ones."""
    pending = [] if node is None else [node]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        if node._sequence_nr() >= started:
            pending += [parent for parent, _ in node.next_functions if parent is not None]


def reaches(output: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether the output's graph leads to one of these tensors."""
    nodes = {x.grad_fn for x in inputs if x.grad_fn is not None}
    leaves = {id(x) for x in inputs if x.grad_fn is None}
    return any(output is x for x in inputs) or any(
        node in nodes or id(getattr(node, "variable", None)) in leaves
        for node in nodes_behind(output.grad_fn, set())
    )


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


class GradientSums:
    """Sums of gradients, one for each tensor that got any, in its accumulation dtype."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, x: Tensor) -> Tensor:
        """The sum for x, to be added to in place."""
        if id(x) not in self._sums:
            zeros = torch.zeros(x.shape, dtype=accumulation_dtype(x.dtype), device=x.device)
            self._sums[id(x)] = x, zeros
        return self._sums[id(x)][1]

    def merge(self, other: "GradientSums", factor: Tensor) -> None:
        """Add another's sums, scaled."""
        for x, total in other._sums.values():
            self.of(x).add_(total * factor)

    def items(self) -> list[tuple[Tensor, Tensor]]:
        """The tensors and their sums."""
        return list(self._sums.values())
