"""One training: a method with its options on a data set in one setting, and what is measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from .data import FAMILIES, Data
from .model import MultimodalModel, mlp
from .rivals import find
from .rivals.unimodal import Unimodal
from .strategy import Strategy, accuracy
from .trainer import Schedule, Trained, evaluate, evaluate_without, train

HIDDEN, LATENT = 128, 16
EPOCHS = 40
LEARNING_RATE = 3e-3  # where none was chosen

Options = Mapping[str, Any]


# One operation over all parameters: the layers are so small that it counts.
OPTIMIZER = partial(torch.optim.Adam, fused=True)


@dataclass(frozen=True)
class Setting:
    """A data set in one setting, drawn by a seed."""

    family: str
    value: float
    seed: int


@dataclass(frozen=True)
class Scores:
    """Shares of right rows, 0 to 1, as of the best validation epoch unless said.

    Of the unimodal models each is as of its own best epoch, and `best_epoch` the latest of these.
    """

    test: float
    test_last: float  # after the last epoch
    validation: float
    best_epoch: int
    without: tuple[float, ...]  # test, with the latents of this modality at their training mean
    alone: tuple[float, ...]  # test, of each unimodal model; empty for other methods
    step_ms: float
    first_epoch: int = 0  # in which the method did something of its own


@cache
def data_of(setting: Setting) -> Data:
    """The rows; kept, as all methods of a seed train on the same ones."""
    return FAMILIES[setting.family].load(setting.value, setting.seed)


def fresh_model(data: Data, seed: int) -> MultimodalModel:
    """A seed gives every method the same first weights."""
    torch.manual_seed(seed)
    encoders = [mlp(x.shape[1], HIDDEN, LATENT) for x in data.train.inputs]
    return MultimodalModel(encoders, [LATENT] * len(encoders), data.classes)


def fit(
    method: str, options: Options, setting: Setting, epochs: int, teacher: Options | None = None
) -> Trained:
    """Train a method.

    Args:
        method: a name of `rivals.STRATEGIES`.
        options: what its class takes; `lr` goes to the optimizer.
        setting: the data; the seed draws first weights and batches, too.
        epochs: of all of them.
        teacher: options of the unimodal models that some methods learn from.
    """
    data = data_of(setting)
    found = dict(options)
    schedule = Schedule(
        epochs, FAMILIES[setting.family].batch_size, found.pop("lr", LEARNING_RATE), OPTIMIZER
    )
    kind = find(method)
    if kind.needs_teachers:
        found["teachers"] = teachers(tuple(sorted((teacher or {}).items())), setting, epochs)
    strategy = kind(fresh_model(data, setting.seed), **found)
    return train(strategy, data.train, data.validation, schedule, setting.seed)


@cache
def teachers(options: tuple[tuple[str, Any], ...], setting: Setting, epochs: int) -> Unimodal:
    """The unimodal models of a seed; kept, as several methods learn from them."""
    trained = fit("unimodal", dict(options), setting, epochs).best
    assert isinstance(trained, Unimodal)
    return trained


def score(trained: Trained, data: Data) -> Scores:
    """What is written of a training."""
    best = trained.best
    return Scores(
        evaluate(best, data.test),
        evaluate(trained.last, data.test),
        trained.best_validation,
        trained.best_epoch,
        tuple(without(best, data, m) for m in range(len(data.test.inputs))),
        alone(best, data) if isinstance(best, Unimodal) else (),
        1e3 * trained.seconds_per_step,
        best.first_epoch(),
    )


@torch.no_grad()
def without(strategy: Strategy, data: Data, lost: int) -> float:
    """Test accuracy with one modality's sensor lost."""
    mean = strategy.encode(data.train.inputs)[lost].mean(0)
    return evaluate_without(strategy, data.test, lost, mean)


@torch.no_grad()
def alone(unimodal: Unimodal, data: Data) -> tuple[float, ...]:
    """Test accuracy of each modality's own model."""
    own = unimodal.best_model.own(unimodal.best_model.encode(data.test.inputs))
    return tuple(accuracy(logits, data.test.labels) for logits in own)
