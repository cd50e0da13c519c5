"""One input of one op, whatever the op: what a check needs to know of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import divergences
import torch
from divergences import Batch, Rows
from torch import Tensor

Results = tuple[Tensor, ...]  # the value, then the gradients


class Subject(Protocol):
    """Tensors of one op's input, the differentiable ones first."""

    op: str
    differentiable: int  # how many of tensors() have a gradient

    def map(self, function: Callable[[Tensor], Tensor]) -> "Subject":
        """The same with a function of every tensor."""

    def tensors(self) -> list[Tensor]:
        """All tensors that are given, in a fixed order."""

    def with_tensors(self, tensors: list[Tensor]) -> "Subject":
        """The same with other tensors, as tensors() has them."""

    def call(self, backend: str) -> Tensor:
        """The value."""

    def upstream(self) -> Tensor:
        """The gradient that comes from above."""

    def run(self, backend: str, upstream: Tensor) -> Results:
        """Value and gradients."""

    def check(self, backend: str) -> None:
        """Hold them to the bound of tests/tolerances.py; AssertionError says by how much not."""

    def op_arguments(self, want_grad: bool) -> tuple:
        """What the op `<name>_fwd` takes."""


@dataclass
class Divergence:
    """permuted_divergence or row_divergence, with what tests/divergences.py knows of both."""

    inputs: Batch | Rows
    options: dict = field(default_factory=dict)
    factor: float | None = None  # of every subset's value; None: upstream gradients that differ

    @property
    def op(self) -> str:
        return "row_divergence" if isinstance(self.inputs, Rows) else "permuted_divergence"

    @property
    def differentiable(self) -> int:
        return sum(t is not None for t in self.inputs.tensors()[:2])

    def map(self, function: Callable[[Tensor], Tensor]) -> "Divergence":
        return replace(self, inputs=self.inputs.map(function))

    def tensors(self) -> list[Tensor]:
        return [t for t in self.inputs.tensors() if t is not None]

    def with_tensors(self, tensors: list[Tensor]) -> "Divergence":
        left = iter(tensors)
        return self.map(lambda _: next(left))

    def call(self, backend: str) -> Tensor:
        return divergences.call(self.inputs, backend, **self.options)

    def upstream(self) -> Tensor:
        device = self.tensors()[0].device
        if isinstance(self.inputs, Rows):
            return torch.tensor(-2.5 if self.factor is None else self.factor, device=device)
        count = len(divergences.options_of(self.inputs, **self.options)["subsets"])
        if self.factor is None:
            return torch.linspace(-1, 2, count, device=device)
        # one number for all subsets, as the backward of a sum gives it
        return torch.tensor(self.factor, device=device).expand(count)

    def run(self, backend: str, upstream: Tensor) -> Results:
        return divergences.run(self.inputs, backend, upstream, **self.options)

    def check(self, backend: str) -> None:
        divergences.check(self.inputs, self.upstream(), backend=backend, **self.options)

    def op_arguments(self, want_grad: bool) -> tuple:
        options = divergences.options_of(self.inputs, **self.options)
        return *self.inputs.tensors(), *options.values(), want_grad

    def edges(self, bad: float) -> "list[tuple[Divergence, list[tuple[int, tuple]]]]":
        """Copies with a number that is not finite: which results must not be either, and where."""
        x, found = self.inputs, []

        def put(name: str, at: tuple, *where: tuple[int, tuple]) -> None:
            y = self.map(torch.clone)
            getattr(y.inputs, name)[at] = bad
            found.append((y, [(0, ()), *where]))

        if isinstance(x, Rows):
            r, c = len(x.rows) // 2, x.clean.shape[1] // 2
            i = int(x.rows[r])
            put("perturbed", (r, c), (1, (r,)), (2, (i,)))
            put("clean", (i, c), (1, (r,)), (2, (i,)))
            return found
        m, n, c = x.contributions.shape
        bias = [] if x.bias is None else [(2, ())]
        for at in ((0, 0), (m // 2, n // 2), (m - 1, n - 1)):
            put("contributions", (*at, c // 2), (1, at), *bias)
        if bias:
            put("bias", (0,), *bias)
        return found


def worth_nothing(x: Subject, results: Results) -> bool:
    """Whether value and gradients are zeros of the shapes they should have."""
    wanted = [t.shape for t in x.tensors()[: x.differentiable]]
    return [g.shape for g in results[1:]] == wanted and not any(t.any() for t in results)


LN2 = math.log(2)
