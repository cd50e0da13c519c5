"""D&R: diagnose how far each encoder overfits, and take it back towards its first weights.

Wei, Li, Feng, Hu, Diagnosing and Re-learning for Balanced Multimodal Learning, ECCV 2024.
"""

from collections.abc import Iterable

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics.cluster import contingency_matrix
from sklearn.preprocessing import minmax_scale
from torch import Tensor

from ..model import Batch, MultimodalModel
from ..strategy import Strategy, evaluating


def purity(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Share of the rows [N] whose label is the most frequent one of their cluster [N]."""
    return float(contingency_matrix(labels, clusters).max(axis=0).sum() / len(labels))


def separability(latents: Tensor, labels: Tensor, classes: int) -> float:
    """Purity of the k-means clusters, as many as classes, of latents [N, D].

    Each feature is scaled to [-1, 1] over these rows.
    """
    scaled = minmax_scale(latents.cpu().numpy(), feature_range=(-1, 1))
    means = KMeans(min(classes, len(scaled)), n_init="auto", random_state=0)
    return purity(labels.cpu().numpy(), means.fit_predict(scaled))


def amounts(gaps: Tensor, strength: float) -> Tensor:
    """[M] -> [M]: tanh(strength * |purity in training - purity in validation|)."""
    return torch.tanh(strength * gaps.abs())


@torch.no_grad()
def take_back(current: Iterable[Tensor], first: Iterable[Tensor], amount: float) -> None:
    """w <- amount * w_0 + (1 - amount) * w, in place."""
    for w, w0 in zip(current, first, strict=True):
        w.lerp_(w0.to(w), amount)


class Relearning(Strategy):
    """CE(f); now and then every encoder is mixed with its first weights, by its `amounts`.

    After epochs `every`, 2 * `every`, ... the gap in purity is measured, and the mixing takes place
    before the epoch that follows: one that would follow the last epoch is left out. Parameters are
    mixed, buffers and the optimizer's state are not. First weights are those that the encoders have
    when this is made, which may be pre-trained ones.

    Args:
        model: what is trained.
        every: epochs between two; published 20, in BalanceBenchmark 15.
        times: how often at most; published 3, in BalanceBenchmark 2.
        strength: lambda; published 3 (CREMA-D) and 5 (UCF101).
    """

    published = "ECCV 2024"

    def __init__(
        self, model: MultimodalModel, every: int = 20, times: int = 3, strength: float = 3.0
    ) -> None:
        super().__init__(model)
        self.every, self.times, self.strength = every, times, strength
        self._first = [[p.detach().clone() for p in e.parameters()] for e in model.encoders]
        self._amounts: Tensor | None = None  # [M], while a mixing is due
        self._done = 0

    def first_epoch(self) -> int:
        return self.every + 1

    def epoch_start(self, epoch: int, train: Batch) -> None:
        if self._amounts is None:
            return
        for encoder, first, amount in zip(
            self.model.encoders, self._first, self._amounts.tolist(), strict=True
        ):
            take_back(encoder.parameters(), first, amount)
        self._amounts = None
        self._done += 1

    def epoch_end(self, epoch: int, train: Batch, validation: Batch) -> None:
        if epoch > 0 and epoch % self.every == 0 and self._done < self.times:
            self._amounts = amounts(self.gaps(train, validation), self.strength)

    def gaps(self, train: Batch, validation: Batch) -> Tensor:
        """Each modality's purity in training less that in validation: [M]."""
        with evaluating(self):
            seen, unseen = (
                [separability(z, rows.labels, self.model.classes) for z in self.encode(rows.inputs)]
                for rows in (train, validation)
            )
        return torch.tensor(seen) - torch.tensor(unseen)
