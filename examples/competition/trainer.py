"""Trains any strategy; keeps the state of the best validation epoch and the last one.

A strategy that has chosen epochs itself (`Strategy.chosen`) is taken at its word.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .model import Batch
from .strategy import Strategy, accuracy, evaluating


@dataclass(frozen=True)
class Schedule:
    """What is the same for all strategies."""

    epochs: int
    batch_size: int = 32
    lr: float = 1e-3
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam


@dataclass(frozen=True)
class Trained:
    """A strategy after its training."""

    best: Strategy  # as of the best validation epoch, or of what the strategy chose
    last: Strategy  # as of the last epoch
    best_epoch: int  # the latest one, if the strategy chose several
    best_validation: float  # accuracy of `best`
    validation: list[float]  # accuracy after each epoch
    seconds_per_step: float


def train(
    strategy: Strategy,
    train_rows: Batch,
    validation: Batch,
    schedule: Schedule,
    seed: int,
    after_epoch: Callable[[Strategy], None] = lambda strategy: None,
) -> Trained:
    """Train a strategy; the seed draws the batches, and what the strategy draws."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    optimizer = schedule.optimizer(strategy.parameter_groups(schedule.lr), lr=schedule.lr)
    curve: list[float] = []
    best, best_epoch, steps, seconds = strategy.state_dict(), -1, 0, 0.0
    for epoch in range(schedule.epochs):
        start = time.perf_counter()
        strategy.train()
        strategy.epoch_start(epoch, train_rows)
        for batch in strategy.batches(train_rows, schedule.batch_size, generator):
            strategy.step(batch, optimizer)
            steps += 1
        strategy.epoch_end(epoch, train_rows, validation)
        seconds += time.perf_counter() - start
        curve.append(evaluate(strategy, validation))
        if curve[-1] > max(curve[:-1], default=-1.0):
            best, best_epoch = copy.deepcopy(strategy.state_dict()), epoch
        after_epoch(strategy)
    own_choice = strategy.chosen()
    if own_choice is None:
        kept = copy.deepcopy(strategy)
        kept.load_state_dict(best)
    else:
        kept, best_epoch = own_choice
    found = evaluate(kept, validation)
    per_step = seconds / max(steps, 1)
    return Trained(kept.eval(), strategy.eval(), best_epoch, found, curve, per_step)


def evaluate(strategy: Strategy, rows: Batch) -> float:
    """Accuracy of the predictions, in eval mode."""
    with evaluating(strategy):
        return accuracy(strategy.predict(rows.inputs), rows.labels)


@torch.no_grad()
def evaluate_without(strategy: Strategy, rows: Batch, lost: int, mean: Tensor) -> float:
    """Accuracy with the latents of one modality replaced by their training mean [D_m]."""
    latents = strategy.encode(rows.inputs)
    latents[lost] = mean.expand_as(latents[lost])
    return accuracy(strategy.predict_latents(latents), rows.labels)
