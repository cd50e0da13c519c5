"""One input of one op, and how a backend's results on it are compared with the float64 truth."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

import mcr_fast
from bench.gpu.shared import check_gradient, check_value, contrastive, divergences
from mcr_fast.ops.nt_xent import nt_xent
from mcr_fast.ops.reconstruction_loss import reconstruction_loss
from mcr_fast.ops.sup_con import sup_con

Results = tuple[Tensor, ...]  # the value, then the gradients


class Subject(Protocol):
    """Tensors of one op's input, the differentiable ones among them."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Subject:
        """The same with a function of every tensor."""

    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order."""

    def upstream(self) -> Tensor:
        """The gradient that comes from above, of the value's shape and dtype."""

    def run(self, backend: str, upstream: Tensor) -> Results:
        """Value and gradients."""

    def check(self, backend: str) -> None:
        """Hold them to the bound of tests/tolerances.py; AssertionError says by how much not."""


@dataclass
class Divergence:
    """permuted_divergence or row_divergence; the tests' helpers do the work."""

    inputs: divergences.Inputs
    options: dict = field(default_factory=dict)
    unequal: bool = False  # upstream gradients that differ by subset

    def map(self, function: Callable[[Tensor], Tensor]) -> Divergence:
        return replace(self, inputs=self.inputs.map(function))

    def tensors(self) -> list[Tensor]:
        return [t for t in self.inputs.tensors() if t is not None]

    def upstream(self) -> Tensor:
        first = self.tensors()[0]
        if isinstance(self.inputs, divergences.Rows):
            return torch.tensor(-2.5, device=first.device)
        subsets = divergences.options_of(self.inputs, **self.options)["subsets"]
        if self.unequal:
            return torch.linspace(-1, 2, len(subsets), device=first.device)
        # one number for all subsets, as the backward of a sum gives it
        return torch.tensor(-2.5, device=first.device).expand(len(subsets))

    def run(self, backend: str, upstream: Tensor) -> Results:
        return divergences.run(self.inputs, backend, upstream, **self.options)

    def check(self, backend: str) -> None:
        divergences.check(self.inputs, self.upstream(), backend=backend, **self.options)


CONTRASTIVE = {"nt_xent": nt_xent, "sup_con": sup_con}


@contextlib.contextmanager
def product_precision(name: str) -> Iterator[None]:
    """`torch.set_float32_matmul_precision` for a while."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
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

    def map(self, function: Callable[[Tensor], Tensor]) -> Embeddings:
        present = None if self.present is None else function(self.present)
        return replace(self, x=function(self.x), labels=function(self.labels), present=present)

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.x, self.labels, self.present) if t is not None]

    def upstream(self) -> Tensor:
        return torch.tensor(-2.5, device=self.x.device)

    def run(self, backend: str, upstream: Tensor) -> Results:
        x = self.x.detach().requires_grad_()
        with product_precision(self.precision):
            loss = CONTRASTIVE[self.op](
                x, self.labels, self.present, temperature=self.temperature, backend=backend
            )
            (grad,) = torch.autograd.grad(loss, x, upstream.to(loss))
        return loss.detach(), grad

    def check(self, backend: str) -> None:
        upstream = self.upstream()
        truth = replace(self, x=self.x.double()).run("reference", upstream)
        ours, plain = self.run(backend, upstream), self.run("reference", upstream)
        if len(self.x) < 2:
            assert ours[0] == 0, f"{ours[0]} for fewer than two rows"
            assert not ours[1].any(), "a gradient without a pair"
            return
        contrastive.hold_to_bound(
            *(self.op, ours, truth, plain, self.x, self.temperature, float(upstream))
        )


@dataclass
class Reconstruction:
    """reconstruction_loss."""

    latents: list[Tensor]  # M tensors [N, D_m]
    reconstruction: Tensor  # [N, sum of D_m]

    def map(self, function: Callable[[Tensor], Tensor]) -> Reconstruction:
        return Reconstruction([function(z) for z in self.latents], function(self.reconstruction))

    def tensors(self) -> list[Tensor]:
        return [*self.latents, self.reconstruction]

    def upstream(self) -> Tensor:
        return torch.tensor(-2.5, device=self.reconstruction.device)

    def run(self, backend: str, upstream: Tensor) -> Results:
        leaves = [t.detach().requires_grad_() for t in self.tensors()]
        loss = reconstruction_loss(leaves[:-1], leaves[-1], backend=backend)
        return loss.detach(), *torch.autograd.grad(loss, leaves, upstream.to(loss))

    def check(self, backend: str) -> None:
        upstream, op = self.upstream(), "reconstruction_loss"
        truth = self.map(lambda t: t.double()).run("reference", upstream)
        ours, plain = self.run(backend, upstream), self.run("reference", upstream)
        check_value(op, ours[0], truth[0], plain[0])
        for results in zip(ours[1:], truth[1:], plain[1:], strict=True):
            check_gradient(op, *results)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "none": nn.Identity,
}


@dataclass
class FusionStep:
    """A whole `MCRLoss` of a fusion with a head, whose perturbed hidden rows have a kernel."""

    latents: list[Tensor]  # M tensors [N, D]
    weights: list[Tensor]  # M of [H, D], bias [H], head's weight [C, H] and bias [C]
    labels: Tensor  # [N]
    donors: Tensor  # [K, N]
    activation: str = "gelu"

    def map(self, function: Callable[[Tensor], Tensor]) -> FusionStep:
        latents, weights = ([function(t) for t in given] for given in (self.latents, self.weights))
        rest = function(self.labels), function(self.donors)
        return FusionStep(latents, weights, *rest, self.activation)

    def tensors(self) -> list[Tensor]:
        return [*self.latents, *self.weights, self.labels, self.donors]

    def upstream(self) -> Tensor:
        return torch.tensor(-2.5, device=self.labels.device)

    def run(self, backend: str, upstream: Tensor) -> Results:
        latents = [z.detach().requires_grad_() for z in self.latents]
        parameters = [nn.Parameter(w.detach()) for w in self.weights]
        *projections, bias, weight, head_bias = parameters
        layers = [nn.Linear(*w.shape[::-1], bias=False, device="meta") for w in projections]
        head = nn.Linear(*weight.shape[::-1], device="meta")
        for layer, w in zip([*layers, head], [*projections, weight], strict=True):
            layer.weight = w
        head.bias = head_bias
        activation = ACTIVATIONS[self.activation]()
        fusion = mcr_fast.AdditiveFusion(layers, bias, nn.Sequential(activation, head))
        widths = [z.shape[1] for z in latents]
        loss = mcr_fast.MCRLoss(widths, len(weight), mipd_weight=1.0, backend=backend)(
            latents, self.labels, fusion=fusion, permutations=self.donors
        ).loss
        grads = torch.autograd.grad(loss, [*latents, *parameters], upstream.to(loss))
        return loss.detach(), *grads

    def check(self, backend: str) -> None:
        upstream, op = self.upstream(), "row_divergence"
        truth = self.map(lambda t: t.double() if t.is_floating_point() else t)
        truth = truth.run("reference", upstream)
        ours, plain = self.run(backend, upstream), self.run("reference", upstream)
        # products round before the divergence and after it, on logits of about this size
        check_value(op, ours[0], truth[0], plain[0], growth=8)
        largest = max(float(g.abs().max()) for g in truth[1:])
        for results in zip(ours[1:], truth[1:], plain[1:], strict=True):
            # what two players get can cancel, in the bias of the head altogether
            check_gradient(op, *results, growth=8, floor=0.01 * largest)
