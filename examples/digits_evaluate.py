"""What is measured of a trained model: accuracy, what each encoder learned, who decides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from digits_data import Digits, Split, degrade
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm

import mcr_fast

NAN = float("nan")
ALONE = {"left half alone": 0, "right half alone": 1}  # methods that see one half


class Model(Protocol):
    """What is asked of a model of two halves."""

    fusion: nn.Linear
    heads: nn.ModuleList

    def encode(self, halves: tuple[Tensor, Tensor]) -> list[Tensor]: ...

    def fuse(self, latents: list[Tensor]) -> Tensor: ...


AfterEpoch = Callable[[Model], None]


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


def predict(model: Model, method: str, latents: list[Tensor]) -> Tensor:
    """Probabilities [N, C]: of the fusion, or of the one half's head."""
    half = ALONE.get(method)
    logits = model.fuse(latents) if half is None else model.heads[half](latents[half])
    return logits.softmax(1)


@torch.no_grad()
def score(model: Model, method: str, digits: Digits, split: Split) -> Scores:
    """A model on the validation or the test images."""
    latents = model.encode(split.halves)
    seen = degrade(digits.train, digits.noise, torch.Generator().manual_seed(0))
    train_latents = model.encode(seen.halves)
    half = ALONE.get(method)
    probes = [NAN, NAN]
    for m in range(2) if half is None else [half]:
        probes[m] = probe_accuracy(train_latents[m], seen.labels, latents[m], split.labels)
    return Scores(
        predict(model, method, latents),
        split.labels,
        (probes[0], probes[1]),
        importance(latents, model.fusion) if half is None else (NAN, NAN),
    )


def follow(digits: Digits, method: str, curve: Curve, bar: tqdm) -> AfterEpoch:
    """What each epoch adds to the plot, from the validation images."""
    validation = digits.validation

    @torch.no_grad()
    def after_epoch(model: Model) -> None:
        latents = model.encode(validation.halves)
        hits = predict(model, method, latents).argmax(1) == validation.labels
        curve.accuracy.append(hits.double().mean().item())
        if method not in ALONE:
            share = importance(latents, model.fusion, num_permutations=16)[1]
            curve.right_importance.append(share)
        bar.update()

    return after_epoch
