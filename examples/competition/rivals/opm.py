"""OPM: drop the latents of the modality that is ahead, in some rows of some batches.

Wei, Hu, Du and Wen, On-the-fly Modulation for Balanced Multimodal Learning, TPAMI 2024.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import Batch, MultimodalModel
from ..strategy import Strategy, mean_of_others, true_class_scores


def dropping_rates(scores: Tensor, base: float, strength: float) -> Tensor:
    """[M] -> q [M]: clip(base * (1 + strength * tanh(rho - 1)), 0, 1) where rho > 1, else 0.

    rho is a score over the mean of the others.
    """
    rho = scores / mean_of_others(scores)
    rates = base * (1 + strength * torch.tanh(rho - 1))
    return torch.where(rho > 1, rates.clamp(0, 1), torch.zeros_like(rho))


def dropped_share(rates: Tensor, widths: Sequence[int]) -> Tensor:
    """The expected share of the latents' numbers that is dropped, 0-d: rates weighted by widths."""
    d = torch.tensor(widths, dtype=rates.dtype, device=rates.device)
    return (rates * d).sum() / d.sum()


def drop(
    latents: Sequence[Tensor], labels: Tensor, kept: Tensor, share: Tensor
) -> tuple[list[Tensor], Tensor]:
    """The rows of which something is kept: latents, 0 where kept [N, M] is False, and labels.

    What is kept is divided by 1 - share, for all modalities alike.
    """
    rows = kept.any(1)
    scales = (kept[rows] / (1 - share)).unbind(1)
    return [z[rows] * s[:, None] for z, s in zip(latents, scales, strict=True)], labels[rows]


class OPM(Strategy):
    """CE(f) of latents of which those of modality m are dropped with probability q_m, row by row.

    Scores are those of the slices of the linear fusion, of the same batch with nothing dropped. The
    modality with the lowest score is never dropped; but scores that are equal up to rounding may
    all be above the mean of the others, and then a row may lose all. It leaves the batch. A batch
    that no row is left of is skipped.

    Args:
        model: what is trained.
        base: q of a modality that is just ahead; published .5.
        strength: how much q grows with the lead, lambda in the paper; published .5.
        probability: of a batch to be changed at all; published .7 on the command line, .4 in the
            configuration file and in BalanceBenchmark.
        warm_up: the first epochs, in which nothing is dropped; published 5.
    """

    published = "TPAMI 2024"

    def __init__(
        self,
        model: MultimodalModel,
        base: float = 0.5,
        strength: float = 0.5,
        probability: float = 0.7,
        warm_up: int = 5,
    ) -> None:
        super().__init__(model)
        self.base, self.strength = base, strength
        self.probability, self.warm_up = probability, warm_up
        self._epoch, self._rows = 0, 0

    def first_epoch(self) -> int:
        return self.warm_up

    def epoch_start(self, epoch: int, train: Batch) -> None:
        self._epoch = epoch

    def loss(self, batch: Batch) -> Tensor:
        latents, labels = self.model.encode(batch.inputs), batch.labels
        if self._epoch >= self.warm_up and torch.rand(()) < self.probability:
            with torch.no_grad():
                scores = true_class_scores(self.model.slices(latents), labels)
            rates = dropping_rates(scores, self.base, self.strength)
            kept = torch.rand(len(labels), len(latents), device=rates.device) >= rates
            share = dropped_share(rates, self.model.widths)
            latents, labels = drop(latents, labels, kept, share)
        self._rows = len(labels)
        return F.cross_entropy(self.model.fuse(latents), labels)

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        if self._rows:
            super().update(optimizer)
