"""A fusion that is any function of the latents: gathered latents, and whose a parameter is."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from mcr_fast._wrapping import takes_joined, unwrapped, wrapped
from mcr_fast.fusion import AdditiveFusion, additive_linear, adds_up
from mcr_fast.mipd.draw import draw_noise
from mcr_fast.mipd.gradients import GradientSums, Pulled, own
from mcr_fast.mipd.request import Fusion, Request
from mcr_fast.mipd.source import Turn

_PER_PROCESS = ("DistributedDataParallel", "DataParallel")


class CallableSource:
    """Any fusion, a function of the list of latents."""

    def __init__(self, request: Request):
        self.fusion, self.permutes = _as_function(request.fusion), request.permutes()
        self.owners = _Owners(request.fusion, request.latent_dims)
        self.noise: list[Tensor] = []
        if request.perturbation == "noise":
            how = (request.generator, request.rank, request.fixed)
            self.noise = draw_noise(request.latents, request.num_draws(), *how)
        self.players: Sequence[Tensor] = request.latents
        self.row_elements = sum(z[:1].numel() for z in request.latents)

    def wants_used(self, turn: Turn) -> bool:
        """Parameters are shared, but for those of an additive fusion's projections."""
        return turn.head != 0 or (self.owners.any and any(turn.route))

    def run(self, turn: Turn) -> tuple[list[GradientEdge | None], Tensor]:
        """Gather the latents, run the fusion."""
        edges: list[GradientEdge | None] = []
        inputs = []
        for m, z in enumerate(self.players):
            x, replaces = z.detach(), turn.replaces(m)
            donated = replaces and self.permutes
            rows = x[turn.chunk.donors(m)] if donated else turn.chunk.repeat(x)
            rows, edge = own(turn.safe(rows), z.requires_grad and turn.route[m] != 0)
            if replaces and not self.permutes:
                noise = turn.chunk.cut(self.noise[m]) if self.noise else None
                rows = torch.zeros_like(rows) if noise is None else rows + noise
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
            if turn.replaces(m) and self.permutes:
                turn.chunk.sum_by_donor(sums.of(z), grad, m)
            else:
                turn.chunk.sum_by_row(sums.of(z), grad, turn.route[m])


def _as_function(fusion: Fusion) -> Callable[[list[Tensor]], Tensor]:
    """The fusion as a function of the list of latents, for the regularizer's own runs.

    Without a data-parallel wrapper, which prepares for one backward a call.
    """
    inner = wrapped(fusion) if type(fusion).__name__ in _PER_PROCESS else None
    run: Callable[[Any], Tensor] = fusion if inner is None else inner
    if takes_joined(fusion):
        return lambda latents: run(torch.cat(latents, dim=-1))
    return run


class _Owners:
    """The parameters of a fusion that belong to one modality; all others are shared.

    An additive fusion with hooks or in a wrapper runs as any callable does, and its projections
    stay the modalities' own: projections[m] is player m's, and so are m's columns of a linear
    layer.
    """

    def __init__(self, fusion: object, latent_dims: Sequence[int]):
        self._whole: dict[int, int] = {}
        self._columns: dict[int, Sequence[int]] = {}
        inner = unwrapped(fusion)
        linear = additive_linear(inner)
        weight = None if linear is None else linear._parameters.get("weight")
        if weight is not None and weight.shape[1] == sum(latent_dims):
            self._columns[id(weight)] = latent_dims
        elif adds_up(inner) and hasattr(inner, "projections"):
            self._own_projections(inner)
        self.any = bool(self._whole or self._columns)

    def _own_projections(self, fusion: AdditiveFusion) -> None:
        parts: list[nn.Module] = [*fusion.projections]
        owned = [{id(p) for p in part.parameters()} for part in parts]
        others = set() if fusion.head is None else {id(p) for p in fusion.head.parameters()}
        for m, ids in enumerate(owned):
            elsewhere = others.union(*owned[:m], *owned[m + 1 :])
            self._whole.update((key, m) for key in ids - elsewhere)

    def add(self, total: Tensor, x: Tensor, grad: Tensor, route: Sequence[int], head: int) -> None:
        """Add the gradient of x to its total, times the factor of whoever owns x."""
        widths = self._columns.get(id(x))
        if widths is None:
            owner = self._whole.get(id(x))
            total.add_(grad, alpha=head if owner is None else route[owner])
            return
        blocks = zip(total.split(widths, 1), grad.split(widths, 1), route, strict=True)
        for block, grad_block, factor in blocks:
            block.add_(grad_block, alpha=factor)
