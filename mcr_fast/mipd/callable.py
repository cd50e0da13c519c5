"""A fusion that is any function of the latents: gathered latents, and the fusion on them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from mcr_fast._wrapping import takes_joined
from mcr_fast.mipd.draw import draw_noise
from mcr_fast.mipd.gradients import GradientSums, Pulled, own
from mcr_fast.mipd.owners import Owners, find_owners
from mcr_fast.mipd.request import Fusion, Request
from mcr_fast.mipd.source import Turn
from mcr_fast.mipd.uses import Heard


class CallableSource:
    """Any fusion, a function of the list of latents."""

    def __init__(self, request: Request, modules: Sequence[nn.Module]):
        self.fusion, self.permutes = _as_function(request.fusion), request.permutes()
        self.request, self.modules = request, modules
        self.noise: list[Tensor] = []
        self.heard: Heard | None = None  # the gradients of the last run, use by use
        if request.perturbation == "noise":
            how = (request.generator, request.rank, request.fixed)
            self.noise = draw_noise(request.latents, request.num_draws(), *how)
        self.players: Sequence[Tensor] = request.latents
        self.row_elements = sum(z[:1].numel() for z in request.latents)

    @functools.cached_property
    def owners(self) -> Owners:
        """Whose the parameters are."""
        request = self.request
        sizes = (request.latent_dims, request.num_classes)
        return find_owners(request.fusion, self.fusion, request.latents, *sizes, self.modules)

    def wants_used(self, turn: Turn) -> bool:
        """Parameters are shared, but for those of an additive fusion's projections."""
        return turn.head != 0 or (any(turn.route) and bool(self.owners))

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
        return edges, self._call(turn, inputs)

    def _call(self, turn: Turn, inputs: list[Tensor]) -> Tensor:
        """Run the fusion, and listen to what has several owners if its gradient is wanted."""
        self.heard = None
        if not (torch.is_grad_enabled() and self.wants_used(turn) and self.owners.split):
            return self.fusion(inputs)
        calls, started = self.owners.calls(), torch._C._autograd._get_sequence_nr()
        with calls.noted():
            output = self.fusion(inputs)
        if isinstance(output, Tensor):  # and anything else is refused where others see it
            self.heard = Heard(output, started, self.owners.split, calls)
        return output

    def collect(self, turn: Turn, pulled: Pulled, sums: GradientSums) -> None:
        """A donor's row to the donor, a clean row to the row itself."""
        for x, to_used in pulled.used:
            self.owners.add(sums.of(x), x, to_used, turn, self.heard)
        for m, (z, grad) in enumerate(zip(self.players, pulled.rows, strict=True)):
            if grad is None:
                continue
            if turn.replaces(m) and self.permutes:
                turn.chunk.sum_by_donor(sums.of(z), grad, m)
            else:
                turn.chunk.sum_by_row(sums.of(z), grad, turn.route[m])


def _as_function(fusion: Fusion) -> Callable[[list[Tensor]], Tensor]:
    """The fusion as a function of the list of latents."""
    run: Callable[[Any], Tensor] = fusion
    if takes_joined(fusion):
        return lambda latents: run(torch.cat(latents, dim=-1))
    return run
