"""MCR: multi-loss, and the regularizer of this library.

Kontras et al., arXiv 2411.07335, NeurIPS 2025.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

import mcr_fast

from ..model import Batch, MultimodalModel
from ..strategy import Strategy


class MCR(Strategy):
    """Algorithm 1 of the paper: CE(f) + unimodal losses + L_MIPD + L_Con (+ L_CEB).

    Args:
        model: what is trained.
        weight: of the unimodal losses.
        mipd, contrastive, ceb: weights of the three terms.
        num_permutations: K, or ``"all"``.
        options: what else `mcr_fast.MCRLoss` takes.
    """

    published = "NeurIPS 2025"

    def __init__(
        self,
        model: MultimodalModel,
        weight: float | Sequence[float] = 1.0,
        mipd: float = 0.1,
        contrastive: float = 1.0,
        ceb: float = 0.0,
        num_permutations: Any = 32,
        **options: Any,
    ) -> None:
        super().__init__(model)
        regularizer = mcr_fast.MCRLoss(
            model.widths,
            model.classes,
            mipd_weight=mipd,
            contrastive_weight=contrastive,
            ceb_weight=ceb,
            num_permutations=num_permutations,
            **options,
        )
        self.objective = mcr_fast.MCRObjective(regularizer, unimodal_weight=weight)

    def loss(self, batch: Batch) -> Tensor:
        model = self.model
        latents = model.encode(batch.inputs)
        return self.objective(
            latents, batch.labels, fusion=model.fusion, unimodal_heads=model.heads
        ).loss
