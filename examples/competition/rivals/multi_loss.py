"""Multi-loss: joint training, and the cross-entropy of a head on each modality."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..model import Batch, MultimodalModel
from ..strategy import Strategy


class MultiLoss(Strategy):
    """CE(f) + sum over m of weight_m * CE(o_m), o_m of the modality's own head.

    Args:
        model: what is trained.
        weight: of the unimodal losses, a number or one a modality; published per data set, from
            .001 to 1.
    """

    def __init__(self, model: MultimodalModel, weight: float | Sequence[float] = 1.0) -> None:
        super().__init__(model)
        if isinstance(weight, (int, float)):
            weight = [float(weight)] * model.num_modalities
        self.weights = list(weight)

    def losses(self, latents: list[Tensor], labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """CE(f), and CE(o_m) of each modality."""
        task = F.cross_entropy(self.model.fuse(latents), labels)
        return task, [F.cross_entropy(o, labels) for o in self.model.own(latents)]

    def weighted(self, task: Tensor, own: list[Tensor]) -> Tensor:
        """CE(f) + the weighted sum of the others, 0-d."""
        for weight, each in zip(self.weights, own, strict=True):
            task = task + weight * each
        return task

    def loss(self, batch: Batch) -> Tensor:
        return self.weighted(*self.losses(self.model.encode(batch.inputs), batch.labels))
