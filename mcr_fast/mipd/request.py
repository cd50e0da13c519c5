"""What `MCRLoss` asks of the engine: one object a step, which every part of it takes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# The options of MCRLoss that a request holds as they are.
ASKED_AS_SET = (
    *("latent_dims", "num_classes", "strategy", "clean_path", "divergence", "perturbation"),
    *("chunk_rows", "fusion_mode", "backend"),
)

Fusion = nn.Module | Callable[[list[Tensor]], Tensor]


class Request(NamedTuple):
    """L_MIPD of one batch, checked, its donors drawn.

    No properties: a compiler of torch 2.10 does not see those of a named tuple.
    """

    latents: list[Tensor]  # M tensors [N, ..., D_m]
    fusion: Fusion
    logits: Tensor | None  # [N, C], the caller's; None: call the fusion
    latent_dims: tuple[int, ...]
    num_classes: int
    order: Tensor | None  # [N] int64
    donors: Tensor | None  # [1 or M, K] or [1 or M, K, N] int64; in the form the ops take
    codes: Tensor | None  # [N] int64, of the labels
    present: Tensor | None  # [N, M] bool
    sample_weight: Tensor | None  # [N]
    subsets: tuple[int, ...]
    strategy: str
    clean_path: str
    divergence: str
    exclude: str
    perturbation: str
    generator: torch.Generator | None  # of the noise
    rank: int  # of this process, whose draws are its own
    fixed: bool  # without one the noise is the same in every step
    chunk_rows: int | None
    fusion_mode: str
    backend: str | None

    def num_rows(self) -> int:
        """N."""
        return self.latents[0].shape[0]

    def permutes(self) -> bool:
        """Whether perturbed latents are donors' rows."""
        return self.perturbation == "permute"

    def num_draws(self) -> int:
        """K of a perturbation other than the donors' rows, whose table is one of identities."""
        assert self.donors is not None, "drawn"
        return self.donors.shape[1]

    def pair_tensors(self) -> tuple[Tensor | None, ...]:
        """What the permuted-divergence ops take after the bias."""
        return self.order, self.donors, self.codes, self.present, self.sample_weight

    def options(self) -> dict[str, Any]:
        """The options of these ops, in their order."""
        return {
            "subsets": self.subsets,
            "strategy": self.strategy,
            "clean_path": self.clean_path,
            "divergence": self.divergence,
            "exclude": self.exclude,
        }
