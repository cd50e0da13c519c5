"""What is measured of a trained model: accuracy, with both sensors and with one lost."""

from dataclasses import dataclass
from typing import Protocol

import torch
from digits_data import Digits, Split
from torch import Tensor, nn

import mcr_fast

NAN = float("nan")
ALONE = {"first alone": 0, "second alone": 1}  # methods that see one modality


class Model(Protocol):
    """What is asked of a model of two modalities."""

    fusion: nn.Linear
    heads: nn.ModuleList

    def encode(self, inputs: tuple[Tensor, Tensor]) -> list[Tensor]: ...

    def fuse(self, latents: list[Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class Scores:
    """Shares of the rows of one split, 0 to 1; NaN where a number has no meaning."""

    accuracy: float
    lost: tuple[float, float]  # accuracy without the first modality, and without the second
    importance: float  # of the second modality; that of the first is 1 minus it


def importance(latents: list[Tensor], fusion: nn.Linear) -> tuple[float, float]:
    """Each modality's share of the single-modality divergences.

    How far the predictions move (Jensen-Shannon divergence) when this modality comes from another
    row: from every other one.
    """
    widths = [z.shape[1] for z in latents]
    loss = mcr_fast.MCRLoss(
        widths, fusion.out_features, num_permutations="all", contrastive_weight=0.0
    ).eval()
    first, second = loss(latents, None, fusion=fusion).importance
    return first.item(), second.item()


@torch.no_grad()
def probabilities(model: Model, method: str, digits: Digits, split: Split) -> Tensor:
    """[3, N, C]: with both sensors, without the first, without the second.

    A sensor is lost by putting the mean of its latents over the training rows in the place of each
    row's own: what a fusion gets that is not told. The same for every method.
    """
    latents = model.encode(split.inputs)
    usual = [z.mean(0) for z in model.encode(digits.train.inputs)]
    means = [mean.expand_as(z) for mean, z in zip(usual, latents, strict=True)]
    seen = (latents, [means[0], latents[1]], [latents[0], means[1]])
    only = ALONE.get(method)
    if only is None:
        logits = [model.fuse(z) for z in seen]
    else:
        logits = [model.heads[only](z[only]) for z in seen]
    return torch.stack(logits).softmax(-1)


@torch.no_grad()
def score(model: Model, method: str, digits: Digits, split: Split) -> Scores:
    """A model on the validation or the test rows."""
    share = NAN
    if method not in ALONE:
        share = importance(model.encode(split.inputs), model.fusion)[1]
    return score_of(probabilities(model, method, digits, split), split.labels, share)


def score_of(given: Tensor, labels: Tensor, share: float = NAN) -> Scores:  # [3, N, C], [N]
    """Of an ensemble, too: of the mean of its members' probabilities."""
    both, *lost = (given.argmax(-1) == labels).double().mean(-1).tolist()
    return Scores(both, (lost[0], lost[1]), share)
