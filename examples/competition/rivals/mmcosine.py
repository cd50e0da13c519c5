"""MMCosine: fused logits that neither the size of a latent nor that of a weight can decide.

Xu, Feng, Zhang and Hu, MMCosine: Multi-Modal Cosine Loss Towards Balanced Audio-Visual Fine-Grained
Learning, ICASSP 2023.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import Batch, MultimodalModel
from ..strategy import Strategy


def cosine_logits(latents: Sequence[Tensor], weights: Sequence[Tensor], scale: float) -> Tensor:
    """Latents of [N, D_m] and weights of [C, D_m] -> scale * the sum of their cosines, [N, C].

    A norm below 1e-12 counts as 1e-12, so that a latent of zeros adds nothing.
    """
    cosines = [
        F.normalize(z, dim=1) @ F.normalize(w, dim=1).T
        for z, w in zip(latents, weights, strict=True)
    ]
    return scale * torch.stack(cosines).sum(0)


class MMCosine(Strategy):
    """CE(f), f_c = scale * sum over m of <z_m, W_mc> / (|z_m| |W_mc|), also when it predicts.

    W_m is the modality's part of the linear fusion, whose bias is not used. Of a regression there
    is no such form.

    Args:
        model: what is trained.
        scale: of the cosines; published 10 (all data sets of MCR's comparison) and 15
            (BalanceBenchmark).
    """

    published = "ICASSP 2023"

    def __init__(self, model: MultimodalModel, scale: float = 10.0) -> None:
        super().__init__(model)
        self.scale = scale

    def fuse(self, latents: Sequence[Tensor]) -> Tensor:
        """Latents [N, D_m] -> logits [N, C]."""
        weights = self.model.fusion.weight.split(self.model.widths, dim=1)
        return cosine_logits(latents, weights, self.scale)

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.fuse(self.model.encode(batch.inputs)), batch.labels)

    def predict_latents(self, latents: Sequence[Tensor]) -> Tensor:
        return self.fuse(latents).softmax(1)
