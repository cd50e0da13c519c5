"""The interface of all strategies, which is joint training as it stands."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import Batch, MultimodalModel


def true_class_scores(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Each modality's probability of the true class, summed over the rows: [M], detached."""
    rows = torch.arange(len(labels), device=labels.device)
    return torch.stack([o.detach().softmax(1)[rows, labels].sum() for o in logits])


def mean_of_others(x: Tensor) -> Tensor:
    """For each of M numbers the mean of the others: [M]."""
    return (x.sum() - x) / (len(x) - 1)


class Strategy(nn.Module):
    """How a model of several modalities is trained and asked; this one trains it jointly.

    A strategy overrides what it changes: `loss`, what happens to the gradients (`after_backward`),
    the learning rates of the encoders (`lr_scale`), what happens between epochs, or a whole `step`.
    Its own parameters, if it has any, are trained with the model's. Scores, ratios and weights
    carry no gradient.

    Args:
        model: what is trained; a strategy may replace parts of it when it is made.
    """

    published: ClassVar[str] = ""  # paper and venue
    needs_teachers: ClassVar[bool] = False  # takes `teachers`, a trained `unimodal.Unimodal`

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model
        self.lr_scale = [1.0] * model.num_modalities  # of the encoders

    def loss(self, batch: Batch) -> Tensor:
        """What is minimised, 0-d."""
        return F.cross_entropy(self.model.fuse(self.model.encode(batch.inputs)), batch.labels)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def after_backward(self) -> None:
        """May change the gradients, and `lr_scale` for this step."""

    def step(self, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
        """One update."""
        optimizer.zero_grad()
        self.backward(self.loss(batch))
        self.after_backward()
        self.update(optimizer)

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step, each encoder at its own learning rate."""
        for group in optimizer.param_groups:
            modality = group["modality"]
            scale = 1.0 if modality is None else self.lr_scale[modality]
            group["lr"] = scale * group["base_lr"]
        optimizer.step()

    def scaled(self, modality: int) -> list[nn.Parameter]:
        """What a modality's learning rate and factor are for: the parameters of its encoder."""
        return list(self.model.encoders[modality].parameters())

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """One group of parameters for each encoder, and one for all others."""
        groups: list[dict[str, Any]] = [
            {"params": self.scaled(m), "modality": m} for m in range(self.model.num_modalities)
        ]
        of_encoders = {id(p) for group in groups for p in group["params"]}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in of_encoders]
        groups.append({"params": others, "modality": None})
        return [{**group, "lr": lr, "base_lr": lr} for group in groups if group["params"]]

    def batches(self, train: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """The batches of an epoch: all full ones in a new random order."""
        order = torch.randperm(len(train), generator=generator)
        for index in order[: len(order) // size * size].split(size):
            yield train.rows(index)

    def epoch_start(self, epoch: int, train: Batch) -> None:
        """Before epoch 0, 1, ...; the training rows as they will be drawn from."""

    def epoch_end(self, epoch: int, train: Batch, validation: Batch) -> None:
        """After it; the model is in training mode."""

    def first_epoch(self) -> int:
        """The first epoch in which it does something of its own, as after a warm-up.

        Weights of an earlier epoch are not the strategy's.
        """
        return 0

    def chosen(self) -> "tuple[Strategy, int] | None":
        """Itself as of epochs of its own choice, and the latest of these; asked after the last.

        None leaves the choice to the trainer, which takes the epoch with the best predictions on
        the validation rows.
        """
        return None

    def encode(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The latents [N, D_m] that predictions are made of."""
        return self.model.encode(inputs)

    def predict(self, inputs: Sequence[Tensor]) -> Tensor:
        """Probabilities [N, C]."""
        return self.predict_latents(self.encode(inputs))

    def predict_latents(self, latents: Sequence[Tensor]) -> Tensor:
        """The same from latents, of which those of a lost sensor may have been replaced."""
        return self.model.fuse(latents).softmax(1)

    def scale_gradients(self, factors: Sequence[float] | Tensor, as_lr: bool) -> None:
        """Multiply the gradients of the encoders [M], or their learning rates in this step.

        Adam divides by the size of past gradients, so that a factor on them all but cancels.
        """
        if as_lr:
            self.lr_scale = [float(factor) for factor in factors]
            return
        for m, factor in enumerate(factors):
            for p in self.scaled(m):
                if p.grad is not None:
                    p.grad.mul_(factor)


@contextmanager
def evaluating(strategy: Strategy) -> Iterator[None]:
    """Eval mode and no gradients inside of it; the mode is as it was after it."""
    was_training = strategy.training
    strategy.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        strategy.train(was_training)


@torch.no_grad()
def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of the rows whose largest logit is the label's."""
    return (logits.argmax(1) == labels).double().mean().item()
