"""What the generic-fusion engine plays with: a fusion to run, and who gets its gradients.

`CallableSource` gathers latents for any function of them. `HiddenSource` gathers and adds the
hidden rows of an additive fusion, then runs its head. Every run gets tensors of its own, which a
fusion may write to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from mcr_fast._chunks import Chunk, GradientSums, Pairs
from mcr_fast._owners import Owners
from mcr_fast._runs import Pulled, own
from mcr_fast.ops._gather_add import gather_add, gather_add_backward, serves
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mcr_fast.fusion import Additive, split_activation
from mcr_fast.reference._similarity import accumulation_dtype

# Of a turn whose rows are the clean ones: nobody's latents are replaced.
CLEAN = 0


@dataclass(frozen=True)
class Turn:
    """One chunk of one subset's pairs, and the factors of its gradients."""

    subset: int
    route: Sequence[int]  # to each modality
    head: int  # to what all modalities share
    chunk: Chunk
    pairs: Pairs
    kept: Tensor | None = None  # [R] bool; None unless rows can be missing

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
    """Where logits come from and where their gradients go."""

    row_elements: int

    @property
    def players(self) -> Sequence[Tensor]:
        """The tensors that get the gradients, attached to the caller's graph."""

    def wants_used(self, turn: Turn) -> bool:
        """Whether the turn has gradients for what the fusion uses beside its rows."""

    def run(self, turn: Turn) -> tuple[list[GradientEdge | None], Tensor]:
        """Where the rows' gradients arrive, and the logits [R, C]."""

    def collect(self, turn: Turn, pulled: Pulled, sums: GradientSums) -> None:
        """Route the gradients of a run."""


class CallableSource:
    """Any fusion, a function of the list of latents."""

    def __init__(
        self,
        fusion: Callable[[list[Tensor]], Tensor],
        latents: Sequence[Tensor],  # M tensors [N, ...]
        owners: Owners,
        replace: Callable[[Tensor, int, Chunk], Tensor] | None = None,
    ):
        """`replace(rows, modality, chunk)`: perturbed rows from clean ones; None: donors' rows."""
        self.fusion, self.owners, self.replace = fusion, owners, replace
        self.players: Sequence[Tensor] = latents
        self.row_elements = sum(z[:1].numel() for z in latents)

    def wants_used(self, turn: Turn) -> bool:
        """Parameters are shared, but for those of an additive fusion's projections."""
        return turn.head != 0 or (self.owners.any and any(turn.route))

    def run(self, turn: Turn) -> tuple[list[GradientEdge | None], Tensor]:
        """Gather the latents, run the fusion."""
        edges: list[GradientEdge | None] = []
        inputs = []
        for m, z in enumerate(self.players):
            x = z.detach()
            gather = turn.inside(m) and self.replace is None
            rows = x[turn.pairs.donors_of(m, turn.chunk)] if gather else turn.chunk.repeat(x)
            rows, edge = own(turn.safe(rows), z.requires_grad and turn.route[m] != 0)
            if turn.inside(m) and self.replace is not None:
                rows = self.replace(rows, m, turn.chunk)
            edges.append(edge)
            inputs.append(rows)
        return edges, self.fusion(inputs)

    def collect(self, turn: Turn, pulled: Pulled, sums: GradientSums) -> None:
        """A donor's row to the donor, a clean row to the row itself."""
        for x, to_used in pulled.used:
            self.owners.add(sums.of(x), x, to_used, turn.route, turn.head)
        for m, (z, grad) in enumerate(zip(self.players, pulled.rows, strict=True)):
            if grad is None:
                continue
            if turn.inside(m) and self.replace is None:
                turn.pairs.sum_by_donor(sums.of(z), grad, m, turn.chunk)
            else:
                turn.chunk.sum_by_row(sums.of(z), grad, turn.route[m])


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
        self.row_elements = x[0, :1].numel()
        self.wants_grad = any(p.requires_grad for p in self.players) or (
            self.bias is not None and self.bias.requires_grad
        )

    def wants_used(self, turn: Turn) -> bool:
        """What the head uses is shared."""
        return turn.head != 0

    def run(self, turn: Turn) -> tuple[list[GradientEdge | None], Tensor]:
        """Add what the subset changes to the clean hidden rows, run the head."""
        head = self.fusion.head
        if self._in_kernel(turn):
            rows, head = gather_add(*self._kernel_inputs(turn), self.dtype), self.rest
        else:
            rows = turn.safe(self._rows(turn).to(self.dtype))
        rows, edge = own(rows, self.wants_grad)
        return [edge], rows if head is None else head(rows)

    def _in_kernel(self, turn: Turn) -> bool:
        return self.fused and turn.subset != CLEAN

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

    def collect(self, turn: Turn, pulled: Pulled, sums: GradientSums) -> None:
        """The gradient of a hidden row is that of every contribution in it."""
        for x, to_used in pulled.used:
            sums.of(x).add_(to_used, alpha=turn.head)
        (grad,), chunk = pulled.rows, turn.chunk
        if grad is None:
            return
        if self._in_kernel(turn):
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
