"""Models of two and three modalities with float32 encoders, and their steps by hand."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from rivals_toy import random_batch, tensor, trained_model
from torch import Tensor, nn

from examples.competition.model import Batch, MultimodalModel
from examples.competition.rivals import find
from examples.competition.strategy import Strategy
from examples.competition.trainer import Schedule, Trained, train


def close(found: Tensor, *expected: float) -> None:
    torch.testing.assert_close(found.double().flatten(), tensor(*expected), rtol=0, atol=1e-8)


def model_of(modalities: int, seed: int = 0) -> MultimodalModel:
    """Of three modalities the latents' widths differ."""
    if modalities == 2:
        return trained_model(seed)
    torch.manual_seed(seed)
    return MultimodalModel([nn.Linear(4, 3), nn.Linear(5, 2), nn.Linear(3, 4)], (3, 2, 4), 3)


def batch_of(modalities: int, rows: int = 12, seed: int = 0) -> Batch:
    batch = random_batch(rows, seed)
    if modalities == 2:
        return batch
    third = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed + 100))
    return Batch((*batch.inputs, third), batch.labels)


def by_autograd(loss: Tensor, parameters: Iterable[Tensor]) -> list[Tensor]:
    """Gradients, 0 where there is none; the graph is kept."""
    found = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    return [torch.zeros_like(p) if grad is None else grad for p, grad in pairs]


def multi_loss(model: MultimodalModel, batch: Batch, weight: float = 1.0) -> Tensor:
    latents = model.encode(batch.inputs)
    own = [F.cross_entropy(o, batch.labels) for o in model.own(latents)]
    return F.cross_entropy(model.fuse(latents), batch.labels) + weight * torch.stack(own).sum()


def joint(model: MultimodalModel, batch: Batch) -> Tensor:
    return F.cross_entropy(model.fuse(model.encode(batch.inputs)), batch.labels)


def gradients_of_step(strategy: Strategy, batch: Batch) -> None:
    """Leaves in the parameters what the optimizer would see."""
    strategy.zero_grad()
    strategy.backward(strategy.loss(batch))
    strategy.after_backward()


def assert_gradients(parameters: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for p, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(torch.zeros_like(p) if p.grad is None else p.grad, grad)


def steps(strategy: Strategy, batch: Batch, optimizer: type[torch.optim.Optimizer], n: int = 1):
    """The parameters of the model after n updates at rate .1."""
    made = optimizer(strategy.parameter_groups(0.1), lr=0.1)
    for _ in range(n):
        strategy.step(batch, made)
    return dict(strategy.model.named_parameters())


def learn(name: str, modalities: int, epochs: int) -> Trained:
    """Train on labels that a linear map of the inputs tells."""
    batch = batch_of(modalities, 240)
    scores = torch.stack([x[:, :3] for x in batch.inputs]).sum(0)
    rows = Batch(batch.inputs, scores.argmax(1))
    parts = (rows.rows(torch.arange(160)), rows.rows(torch.arange(160, 240)))
    return train(find(name)(model_of(modalities)), *parts, Schedule(epochs, lr=0.02), 0)
