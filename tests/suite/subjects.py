"""One input of one op, whatever the op: what a check needs to know of it."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import divergences
import torch
from contrastive import hold_to_bound
from divergences import Batch, Rows
from tolerances import check_gradient, check_value
from torch import Tensor, nn

import mcr_fast
from mcr_fast import CyclicPermutations
from mcr_fast.ops.nt_xent import nt_xent
from mcr_fast.ops.reconstruction_loss import reconstruction_loss
from mcr_fast.ops.sup_con import sup_con

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

    def grad_arguments(self, results: Results) -> tuple:
        """What `<name>_bwd` takes after `<name>_fwd` gave these."""

    def edges(self, bad: float) -> "list[tuple[Subject, list[tuple[int, tuple]]]]":
        """Copies with a number that is not finite: which results must not be either, and where."""


@dataclass
class Divergence:
    """permuted_divergence or row_divergence, with what tests/divergences.py knows of both."""

    inputs: Batch | Rows
    options: dict = field(default_factory=dict)
    factor: float | None = None  # of every subset's value; None: upstream gradients that differ
    notes: bool = False  # of perturbed rows, in the arguments
    coherent: bool = False  # as tests/tolerances.py has it

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
        rest = {"backend": backend, "coherent": self.coherent}
        divergences.check(self.inputs, self.upstream(), **rest, **self.options)

    def op_arguments(self, want_grad: bool) -> tuple:
        options = divergences.options_of(self.inputs, **self.options)
        rest = [self.notes, True] if isinstance(self.inputs, Rows) else []
        return *self.inputs.tensors(), *options.values(), want_grad, *rest

    def grad_arguments(self, results: Results) -> tuple:
        arguments = self.op_arguments(True)
        if isinstance(self.inputs, Rows):
            return *results, *arguments[:5], self.notes
        return results[0], *results[-2:], *arguments[:-1]

    def edges(self, bad: float) -> "list[tuple[Divergence, list[tuple[int, tuple]]]]":
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


LOSSES = {"nt_xent": nt_xent, "sup_con": sup_con}


@contextlib.contextmanager
def product_precision(name: str) -> Iterator[None]:
    """`torch.set_float32_matmul_precision` for a while."""
    before = torch.get_float32_matmul_precision()
    if name != before:  # nothing that a compiler would have to trace
        torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        if name != before:
            torch.set_float32_matmul_precision(before)


@dataclass
class Embeddings:
    """nt_xent or sup_con.

    With a `precision` other than "highest" the reference rounds its float32 products too, so that
    the bound is twice what plain torch loses with the same setting.
    """

    op: str
    x: Tensor  # [L, D]
    labels: Tensor  # [L]
    present: Tensor | None = None  # [L]
    temperature: float = 0.5
    precision: str = "highest"  # of float32 products, as torch names it
    factor: float = -2.5  # upstream
    differentiable = 1

    def map(self, function: Callable[[Tensor], Tensor]) -> "Embeddings":
        return self.with_tensors([function(t) for t in self.tensors()])

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.x, self.labels, self.present) if t is not None]

    def with_tensors(self, tensors: list[Tensor]) -> "Embeddings":
        x, labels, present = (*tensors, None)[:3]
        return replace(self, x=x, labels=labels, present=present)

    def call(self, backend: str) -> Tensor:
        rows = self.x, self.labels, self.present
        return LOSSES[self.op](*rows, temperature=self.temperature, backend=backend)

    def upstream(self) -> Tensor:
        return torch.tensor(self.factor, device=self.x.device)

    def run(self, backend: str, upstream: Tensor) -> Results:
        x = self.x.detach().requires_grad_()
        with product_precision(self.precision):
            loss = replace(self, x=x).call(backend)
            (grad,) = torch.autograd.grad(loss, x, upstream.to(loss))
        return loss.detach(), grad

    def check(self, backend: str) -> None:
        upstream = self.upstream()
        truth = replace(self, x=self.x.double()).run("reference", upstream)
        ours, plain = self.run(backend, upstream), self.run("reference", upstream)
        rest = self.x, self.temperature, self.factor
        hold_to_bound(self.op, ours, truth, plain, *rest)

    def op_arguments(self, want_grad: bool) -> tuple:
        return self.x, self.labels, self.present, self.temperature, want_grad

    def grad_arguments(self, results: Results) -> tuple:
        return *results, self.x.dtype

    def edges(self, bad: float) -> "list[tuple[Embeddings, list[tuple[int, tuple]]]]":
        y = self.map(torch.clone)
        y.x[len(y.x) // 2, y.x.shape[1] // 2] = bad
        return [(y, [(0, ()), (1, ())])]


@dataclass
class Reconstruction:
    """reconstruction_loss."""

    latents: list[Tensor]  # M tensors [N, D_m]
    reconstruction: Tensor  # [N, sum of D_m]
    factor: float = -2.5  # upstream
    op = "reconstruction_loss"

    @property
    def differentiable(self) -> int:
        return len(self.tensors())

    def map(self, function: Callable[[Tensor], Tensor]) -> "Reconstruction":
        return self.with_tensors([function(t) for t in self.tensors()])

    def tensors(self) -> list[Tensor]:
        return [*self.latents, self.reconstruction]

    def with_tensors(self, tensors: list[Tensor]) -> "Reconstruction":
        return replace(self, latents=tensors[:-1], reconstruction=tensors[-1])

    def call(self, backend: str) -> Tensor:
        return reconstruction_loss(self.latents, self.reconstruction, backend=backend)

    def upstream(self) -> Tensor:
        return torch.tensor(self.factor, device=self.reconstruction.device)

    def run(self, backend: str, upstream: Tensor) -> Results:
        leaves = [t.detach().requires_grad_() for t in self.tensors()]
        loss = self.with_tensors(leaves).call(backend)
        return loss.detach(), *torch.autograd.grad(loss, leaves, upstream.to(loss))

    def check(self, backend: str) -> None:
        upstream = self.upstream()
        truth = self.map(lambda t: t.double()).run("reference", upstream)
        ours, plain = self.run(backend, upstream), self.run("reference", upstream)
        check_value(self.op, ours[0], truth[0], plain[0])
        for results in zip(ours[1:], truth[1:], plain[1:], strict=True):
            check_gradient(self.op, *results)

    def op_arguments(self, want_grad: bool) -> tuple:
        return self.latents, self.reconstruction

    def grad_arguments(self, results: Tensor) -> tuple:
        return results, self.latents, self.reconstruction

    def edges(self, bad: float) -> "list[tuple[Reconstruction, list[tuple[int, tuple]]]]":
        found = []
        for which, t in enumerate(self.tensors()):
            y, at = self.map(torch.clone), (len(t) // 2, t.shape[1] // 2)
            y.tensors()[which][at] = bad
            found.append((y, [(0, ()), (1 + which, at)]))
        return found


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "none": nn.Tanh,  # the kernel leaves it to the head
}


@dataclass
class FusionStep:
    """A whole `MCRLoss` of a fusion with a head, whose perturbed hidden rows have a kernel."""

    latents: list[Tensor]  # M tensors [N, D]
    weights: list[Tensor]  # M of [H, D], bias [H], head's weight [C, H] and bias [C]
    labels: Tensor  # [N]
    donors: list[Tensor]  # a table [K, N] or [M, K, N]; of a cyclic sample order and shifts
    present: Tensor | None = None  # [N, M]
    activation: str = "gelu"
    options: dict = field(default_factory=dict)  # of MCRLoss
    op = "gather_add"

    @property
    def differentiable(self) -> int:
        return len(self.latents) + len(self.weights)

    def map(self, function: Callable[[Tensor], Tensor]) -> "FusionStep":
        return self.with_tensors([function(t) for t in self.tensors()])

    def tensors(self) -> list[Tensor]:
        present = [] if self.present is None else [self.present]
        return [*self.latents, *self.weights, self.labels, *self.donors, *present]

    def with_tensors(self, tensors: list[Tensor]) -> "FusionStep":
        left = iter(tensors)
        given = {"latents": [next(left) for _ in self.latents]}
        given |= {"weights": [next(left) for _ in self.weights], "labels": next(left)}
        given |= {"donors": [next(left) for _ in self.donors], "present": next(left, None)}
        return replace(self, **given)

    def call(self, backend: str) -> Tensor:
        parameters = [w if isinstance(w, nn.Parameter) else nn.Parameter(w) for w in self.weights]
        *projections, bias, weight, head_bias = parameters
        layers = [nn.Linear(*w.shape[::-1], bias=False, device="meta") for w in projections]
        head = nn.Linear(*weight.shape[::-1], device="meta")
        for layer, w in zip([*layers, head], [*projections, weight], strict=True):
            layer.weight = w
        head.bias = head_bias
        activation = ACTIVATIONS[self.activation]()
        fusion = mcr_fast.AdditiveFusion(layers, bias, nn.Sequential(activation, head))
        widths = [z.shape[1] for z in self.latents]
        donors = self.donors[0] if len(self.donors) == 1 else CyclicPermutations(*self.donors)
        options = {"mipd_weight": 1.0, "backend": backend} | self.options
        step = mcr_fast.MCRLoss(widths, len(weight), **options)
        rest = {"permutations": donors, "present": self.present}
        return step(self.latents, self.labels, fusion=fusion, **rest).loss

    def upstream(self) -> Tensor:
        return torch.tensor(-2.5, device=self.labels.device)

    def run(self, backend: str, upstream: Tensor) -> Results:
        latents = [z.detach().requires_grad_() for z in self.latents]
        parameters = [nn.Parameter(w.detach()) for w in self.weights]
        loss = replace(self, latents=latents, weights=parameters).call(backend)
        grads = torch.autograd.grad(loss, [*latents, *parameters], upstream.to(loss))
        return loss.detach(), *grads

    def check(self, backend: str) -> None:
        upstream = self.upstream()
        truth = self.map(lambda t: t.double() if t.is_floating_point() else t)
        truth = truth.run("reference", upstream)
        ours, plain = self.run(backend, upstream), self.run("reference", upstream)
        # products round before the divergence and after it, on logits of about this size
        check_value(self.op, ours[0], truth[0], plain[0], growth=8)
        largest = max(float(g.abs().max()) for g in truth[1:])
        for results in zip(ours[1:], truth[1:], plain[1:], strict=True):
            # what two players get can cancel, in the bias of the head altogether
            check_gradient(self.op, *results, growth=8, floor=0.01 * largest)

    def edges(self, bad: float) -> "list[tuple[FusionStep, list[tuple[int, tuple]]]]":
        y = self.map(torch.clone)
        row = len(y.labels) // 2
        y.latents[0][row, 0] = bad
        return [(y, [(0, ()), (1, (row,))])]


def worth_nothing(x: Subject, results: Results) -> bool:
    """Whether value and gradients are zeros of the shapes they should have."""
    wanted = [t.shape for t in x.tensors()[: x.differentiable]]
    return [g.shape for g in results[1:]] == wanted and not any(t.any() for t in results)


LN2 = math.log(2)
