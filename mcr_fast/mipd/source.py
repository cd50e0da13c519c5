"""What the engine plays with: a fusion to run, and who gets its gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mcr_fast.mipd.gradients import GradientSums, Pulled
from mcr_fast.mipd.pairs import Chunk

# Of a turn whose rows are the clean ones: nobody's latents are replaced.
CLEAN = 0


@dataclass(frozen=True)
class Turn:
    """One chunk of one subset's pairs, and the factors of its gradients."""

    subset: int
    route: Sequence[int]  # to each modality
    head: int  # to what all modalities share
    chunk: Chunk
    kept: Tensor | None = None  # [R] bool; None unless rows can be missing

    def replaces(self, modality: int) -> bool:
        """Whether the modality is a member of the subset."""
        return bool(self.subset >> modality & 1)

    def safe(self, x: Tensor) -> Tensor:  # [R, ...]
        """Zeros in dropped pairs: what a missing row holds must not reach the fusion."""
        if self.kept is None:
            return x
        kept = self.kept.reshape(-1, *(1 for _ in x.shape[1:]))
        return torch.where(kept, x, x.new_zeros(()))


class Source(Protocol):
    """Where logits come from and where their gradients go.

    Every run gets tensors of its own, which a fusion may write to.
    """

    row_elements: int  # of the input of one run, for the size of a chunk
    players: Sequence[Tensor]  # what gets the gradients, attached to the caller's graph

    def wants_used(self, turn: Turn) -> bool:
        """Whether the turn has gradients for what the fusion uses beside its rows."""

    def run(self, turn: Turn) -> tuple[list[GradientEdge | None], Tensor]:
        """Where the rows' gradients arrive, and the logits [R, C]."""

    def collect(self, turn: Turn, pulled: Pulled, sums: GradientSums) -> None:
        """Route the gradients of a run."""
