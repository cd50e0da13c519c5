"""What is measured of a trained model: accuracy, what each encoder learned, who decides."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import mcr_fast

NAN = float("nan")


@dataclass(frozen=True)
class Curve:
    """One number an epoch on the validation images."""

    accuracy: list[float]
    right_importance: list[float]  # empty for a model of one half


@dataclass(frozen=True)
class Scores:
    """One model on one split; NaN where a number has no meaning."""

    probabilities: Tensor  # [N, C]
    labels: Tensor  # [N]
    probes: tuple[float, float]  # accuracy of a linear probe on each encoder
    importance: tuple[float, float]  # shares, they add up to 1

    @property
    def correct(self) -> Tensor:  # [N], 1 where the prediction is right
        return (self.probabilities.argmax(1) == self.labels).double()

    @property
    def accuracy(self) -> float:
        return self.correct.mean().item()


def ensembled(left: Scores, right: Scores) -> Scores:
    """The mean of the probabilities of a model of the left half and one of the right half."""
    return Scores(
        (left.probabilities + right.probabilities) / 2,
        left.labels,
        (left.probes[0], right.probes[1]),
        (NAN, NAN),
    )


def probe_accuracy(
    train_latents: Tensor, train_labels: Tensor, latents: Tensor, labels: Tensor
) -> float:
    """Linear probe: logistic regression on frozen latents, fitted on the training images."""
    mean, deviation = train_latents.mean(0), train_latents.std(0) + 1e-6
    probe = LogisticRegression(max_iter=300)
    probe.fit(((train_latents - mean) / deviation).numpy(), train_labels.numpy())
    return float(probe.score(((latents - mean) / deviation).numpy(), labels.numpy()))


def importance(
    latents: Sequence[Tensor], fusion: nn.Linear, num_permutations: int | None = None
) -> tuple[float, float]:
    """Each half's share of the single-modality divergences.

    How far the predictions move (Jensen-Shannon divergence) when this half comes from another
    image: from every other one, or from the same few in every call.
    """
    regularizer = mcr_fast.MCRLoss(
        [z.shape[1] for z in latents],
        fusion.out_features,
        num_permutations=num_permutations or "all",
        contrastive_weight=0,
    )
    generator = torch.Generator().manual_seed(0)
    left, right = regularizer(latents, None, fusion=fusion, generator=generator).importance
    return left.item(), right.item()
