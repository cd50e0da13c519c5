"""What the generic-fusion engine plays with: a fusion to run, and who gets its gradients.

`CallableSource` gathers latents for any function of them. `HiddenSource` gathers and adds the
hidden rows of an additive fusion, then runs its head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mcr_fast._chunks import Chunk, GradientSums, Pairs, differentiable_leaves
from mcr_fast.fusion import Additive, split_activation
from mcr_fast.ops._gather_add import gather_add, gather_add_backward, serves
from mcr_fast.reference._similarity import accumulation_dtype


@dataclass(frozen=True)
class Turn:
    """One chunk of one subset's pairs, and its routing."""

    subset: int
    route: list[int]
    head: int
    chunk: Chunk
    pairs: Pairs
    kept: Tensor | None  # [R] bool; None unless rows can be missing

    def inside(self, modality: int) -> bool:
        """Whether the modality is in the subset."""
        return bool(self.subset >> modality & 1)

    def safe(self, x: Tensor) -> Tensor:  # [R, ...]
        """Zeros in dropped pairs: what a missing row holds must not reach the fusion."""
        if self.kept is None:
            return x
        kept = self.kept.reshape(-1, *(1 for _ in x.shape[1:]))
        return torch.where(kept, x, x.new_zeros(()))


class Source(Protocol):
    """Where perturbed logits come from and where their gradients go."""

    row_elements: int

    @property
    def players(self) -> Sequence[Tensor]:
        """The tensors that get the gradients, attached to the caller's graph."""

    def run(self, turn: Turn) -> tuple[list[Tensor], Tensor]:
        """The leaves and the perturbed logits [R, C]."""

    def collect(self, turn: Turn, grads: Sequence[Tensor | None], sums: GradientSums) -> None:
        """Route the leaves' gradients to the players."""

    def route_clean(
        self, logits: Tensor, cotangents: Sequence[Tensor], shared: Tensor, sums: GradientSums
    ) -> None:
        """Route the clean logits' gradient: cotangents[m] to player m, `shared` to parameters."""


class CallableSource:
    """Any fusion, a function of the list of latents."""

    def __init__(
        self,
        fusion: Callable[[list[Tensor]], Tensor],
        latents: Sequence[Tensor],  # M tensors [N, ...]
        replace: Callable[[Tensor, int, Chunk], Tensor] | None = None,
    ):
        """`replace(rows, modality, chunk)`: perturbed rows from clean ones; None: donors' rows."""
        self.fusion, self.replace = fusion, replace
        self.in_place = _works_in_place(fusion)
        self.players: Sequence[Tensor] = latents
        self.row_elements = sum(z[:1].numel() for z in latents)

    def run(self, turn: Turn) -> tuple[list[Tensor], Tensor]:
        """Gather the latents, run the fusion."""
        leaves, inputs = [], []
        for m, z in enumerate(self.players):
            gather = turn.inside(m) and self.replace is None
            x = z.detach()
            rows = x[turn.pairs.donors_of(m, turn.chunk)] if gather else turn.chunk.repeat(x)
            leaf = turn.safe(rows)
            leaf.requires_grad_(torch.is_grad_enabled() and z.requires_grad and turn.route[m] != 0)
            leaves.append(leaf)
            if turn.inside(m) and self.replace is not None:
                inputs.append(self.replace(leaf, m, turn.chunk))
            else:
                inputs.append(leaf.clone() if self.in_place else leaf)
        return leaves, self.fusion(inputs)

    def collect(self, turn: Turn, grads: Sequence[Tensor | None], sums: GradientSums) -> None:
        """A donor's row to the donor, a clean row to the row itself."""
        for m, (z, grad) in enumerate(zip(self.players, grads, strict=True)):
            if grad is None:
                continue
            if turn.inside(m) and self.replace is None:
                turn.pairs.sum_by_donor(sums.of(z), grad, m, turn.chunk)
            else:
                turn.chunk.sum_by_row(sums.of(z), grad, turn.route[m])

    def route_clean(
        self, logits: Tensor, cotangents: Sequence[Tensor], shared: Tensor, sums: GradientSums
    ) -> None:
        """Go back through the caller's own graph from the logits to the latents, no further."""
        wanted = [m for m, z in enumerate(self.players) if z.requires_grad]
        reached = False
        for m in wanted:
            z = self.players[m]
            grad = _grad_cut_at(self.players, logits, [z], cotangents[m])[0]
            if grad is not None:
                sums.of(z).add_(grad)
                reached = True
        if wanted and not reached:
            raise ValueError(
                "logits must be computed from these latents for clean_path='routed', but their "
                "graph does not reach them; leave logits out, or take another clean_path"
            )
        leaves = differentiable_leaves(logits, self.players)
        for x, grad in zip(leaves, _grad_cut_at(self.players, logits, leaves, shared), strict=True):
            if grad is not None:
                sums.of(x).add_(grad)


def _grad_cut_at(
    latents: Sequence[Tensor], output: Tensor, inputs: Sequence[Tensor], cotangent: Tensor
) -> Sequence[Tensor | None]:
    """Gradients that do not flow through a latent into what it was computed from."""
    if not inputs or not output.requires_grad:
        return [None] * len(inputs)
    # a parameter shared by an encoder and the fusion, or a latent made from another latent
    kept = {id(x) for x in inputs}
    cut = [
        z.register_hook(torch.zeros_like) for z in latents if z.requires_grad and id(z) not in kept
    ]
    try:
        return torch.autograd.grad(
            output, inputs, cotangent.to(output.dtype), retain_graph=True, allow_unused=True
        )
    finally:
        for handle in cut:
            handle.remove()


class HiddenSource:
    """An additive fusion: perturbed hidden rows by gather and add, then the head."""

    def __init__(
        self,
        fusion: Additive,
        contributions: Tensor,  # [M, N, H]
        replacements: Sequence[Tensor] | None = None,  # M tensors [K, N, H]; None: donors' rows
        backend: str | None = None,
    ):
        self.fusion, self.contributions = fusion, contributions
        self.replacements = replacements
        self.players: Sequence[Tensor] = [contributions, *(replacements or [])]
        x = contributions.detach()
        self.bias = fusion.bias
        dtype = x.dtype if self.bias is None else torch.promote_types(x.dtype, self.bias.dtype)
        # without a head the sum is the logits, which are not rounded to 16 bits
        self.dtype = accumulation_dtype(dtype) if fusion.head is None else dtype
        self.fused = replacements is None and serves(backend, x, self.bias)
        # kernels convert what they read, and compute the head's first activation with it
        self.x = x.contiguous() if self.fused else x.to(accumulation_dtype(x.dtype))
        self.activation, self.rest = (
            split_activation(fusion.head) if self.fused else ("none", fusion.head)
        )
        self.hidden = x.sum(0, dtype=accumulation_dtype(x.dtype))
        if self.bias is not None:
            self.hidden = self.hidden + self.bias.detach()
        self.in_place = _works_in_place(fusion.head)
        self.row_elements = x[0, :1].numel()
        self.wants_grad = any(p.requires_grad for p in self.players) or (
            self.bias is not None and self.bias.requires_grad
        )

    def run(self, turn: Turn) -> tuple[list[Tensor], Tensor]:
        """Add what the subset changes to the clean hidden rows, run the head."""
        if self.fused:
            leaf = gather_add(*self._kernel_inputs(turn), self.dtype)
        else:
            leaf = turn.safe(self._rows(turn).to(self.dtype))
        leaf.requires_grad_(torch.is_grad_enabled() and self.wants_grad)
        return [leaf], self._run(self.rest, leaf)

    def _kernel_inputs(
        self, turn: Turn
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, int, tuple[int, int], str]:
        donors, bounds = turn.pairs.tables(turn.chunk), (turn.chunk.start, turn.chunk.stop)
        return self.x, self.hidden, donors, turn.kept, turn.subset, bounds, self.activation

    def _rows(self, turn: Turn) -> Tensor:  # [R, H]
        chunk = turn.chunk
        rows = chunk.repeat(self.hidden)
        for m in range(len(self.x)):
            if not turn.inside(m):
                continue
            if self.replacements is None:
                new = self.x[m][turn.pairs.donors_of(m, chunk)]
            else:
                part = self.replacements[m].detach()[chunk.first : chunk.last]
                new = part[:, chunk.start : chunk.stop].flatten(0, 1)
            rows = rows + (new - chunk.repeat(self.x[m]))
        return rows

    def _run(self, head: Callable[[Tensor], Tensor] | None, leaf: Tensor) -> Tensor:
        if head is None:
            return leaf
        return head(leaf.clone() if self.in_place else leaf)

    def collect(self, turn: Turn, grads: Sequence[Tensor | None], sums: GradientSums) -> None:
        """The gradient of a hidden row is that of every contribution in it."""
        grad, chunk = grads[0], turn.chunk
        if grad is None:
            return
        if self.fused:
            self._collect_fused(turn, grad, sums)
            return
        for m in range(len(self.x)):
            if turn.inside(m) and self.replacements is not None:
                part = sums.of(self.replacements[m])[chunk.first : chunk.last]
                part[:, chunk.start : chunk.stop] += chunk.fold(grad)
            elif turn.inside(m):
                turn.pairs.sum_by_donor(sums.of(self.contributions)[m], grad, m, chunk)
            elif turn.route[m] != 0:
                chunk.sum_by_row(sums.of(self.contributions)[m], grad, turn.route[m])
        if self.bias is not None and turn.head != 0:
            bias = sums.of(self.bias)
            bias.add_(grad.sum(0, dtype=bias.dtype), alpha=turn.head)

    def _collect_fused(self, turn: Turn, grad: Tensor, sums: GradientSums) -> None:
        chunk, total = turn.chunk, sums.of(self.contributions)
        inverse = turn.pairs.tables(chunk, sign=-1)
        to_rows = gather_add_backward(grad, *self._kernel_inputs(turn), inverse, total)
        for m, factor in enumerate(turn.route):
            if not turn.inside(m) and factor != 0:
                total[m, chunk.start : chunk.stop].add_(to_rows, alpha=factor)
        if self.bias is not None and turn.head != 0:
            sums.of(self.bias).add_(to_rows.sum(0), alpha=turn.head)

    def route_clean(
        self, logits: Tensor, cotangents: Sequence[Tensor], shared: Tensor, sums: GradientSums
    ) -> None:
        """Run the head once more on the clean rows: the caller's logits may have another graph."""
        with torch.enable_grad():
            leaf = self.hidden.to(self.dtype).detach().requires_grad_(self.wants_grad)
            output = self._run(self.fusion.head, leaf)
        if not output.requires_grad:
            return
        leaves = differentiable_leaves(output, [leaf])
        for m, cotangent in enumerate(cotangents):
            grad = _grad_cut_at((), output, [leaf], cotangent)[0]
            if grad is not None:
                sums.of(self.contributions)[m].add_(grad)
        *grads, grad = _grad_cut_at((), output, [*leaves, leaf], shared)
        for x, g in zip(leaves, grads, strict=True):
            if g is not None:
                sums.of(x).add_(g)
        if self.bias is not None and grad is not None:
            sums.of(self.bias).add_(grad.sum(0))


def _works_in_place(function: object) -> bool:
    """Whether a module has layers that overwrite their input, as no leaf of a graph may be."""
    layers = function.modules() if isinstance(function, nn.Module) else ()
    return any(getattr(layer, "inplace", False) for layer in layers)
