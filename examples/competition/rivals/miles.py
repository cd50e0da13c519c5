"""MILES: after each epoch, slow the encoder that the fused prediction leans on.

Guerra-Manzanares and Shamout, MILES: Modality-Informed Learning Rate Scheduler for Balancing
Multimodal Learning, IJCNN 2025.
"""

from collections.abc import Sequence
from typing import Literal

from ..model import Batch, MultimodalModel
from ..strategy import accuracy, evaluating
from .multi_loss import MultiLoss


def utilisation(fused: float, own: Sequence[float]) -> list[float]:
    """Accuracies, fused and of each modality -> what each adds to the best one of the others.

    u_m = (fused - best other) / fused; 0 for all if the fused accuracy is 0.
    """
    if fused == 0:
        return [0.0] * len(own)
    others = [max(a for j, a in enumerate(own) if j != m) for m in range(len(own))]
    return [(fused - other) / fused for other in others]


def slowed(utilisations: Sequence[float], threshold: float) -> list[bool]:
    """Which modalities are more than `threshold` above the least used one; none if all are < 0."""
    if max(utilisations) < 0:
        return [False] * len(utilisations)
    least = min(utilisations)
    return [u > least + threshold for u in utilisations]


class MILES(MultiLoss):
    """CE(f) + weight * sum over m of CE(o_m), own heads; rates of encoders set after each epoch.

    An encoder whose utilisation is more than `threshold` above the other's has its learning rate
    multiplied by `factor` in the next epoch, the other has the common one, as have the fusion and
    the heads always. With more than two modalities, which is not published, each is compared with
    the least used one. The factor is not cumulative, as in the implementation that is public, which
    is not the authors'; the paper was not checked for that.

    Args:
        model: what is trained.
        weight: of the unimodal losses, gamma in the paper.
        threshold: tau in the paper; published .2.
        factor: mu in the paper; published .5.
        rows: whose accuracies count; the paper allows both.
    """

    published = "IJCNN 2025"

    def __init__(
        self,
        model: MultimodalModel,
        weight: float | Sequence[float] = 1.0,
        threshold: float = 0.2,
        factor: float = 0.5,
        rows: Literal["validation", "train"] = "validation",
    ) -> None:
        super().__init__(model, weight)
        self.threshold, self.factor, self.rows = threshold, factor, rows

    def first_epoch(self) -> int:
        """The first one after an epoch, multi-loss before it."""
        return 1

    def epoch_end(self, epoch: int, train: Batch, validation: Batch) -> None:
        rows = validation if self.rows == "validation" else train
        with evaluating(self):
            latents = self.model.encode(rows.inputs)
            fused = accuracy(self.model.fuse(latents), rows.labels)
            own = [accuracy(o, rows.labels) for o in self.model.own(latents)]
        slow = slowed(utilisation(fused, own), self.threshold)
        self.lr_scale = [self.factor if each else 1.0 for each in slow]
