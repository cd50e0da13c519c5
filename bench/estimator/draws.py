"""Bias and variance of the value and the gradient of L_MIPD over draws of donors, measured.

A batch's exact value and gradient are those of all ordered pairs; each draw is what `MCRLoss` makes
of the same batch with its own random donors.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

import mcr_fast
from bench.estimator import theory
from bench.estimator.models import Batch, Model
from bench.two_speed import NUM_CLASSES

PARTS = ("latents", "encoders")  # what a gradient is taken of


@dataclass(frozen=True)
class Draw:
    """How donors are drawn; count None is all pairs."""

    scheme: str = "cyclic"
    count: int | None = None
    shared: bool = True

    def loss(self, model: Model) -> mcr_fast.MCRLoss:
        """L_MIPD alone."""
        return mcr_fast.MCRLoss(
            model.latent_dims,
            NUM_CLASSES,
            num_permutations="all" if self.count is None else self.count,
            scheme=self.scheme,
            shared_donor=self.shared,
            mipd_weight=1.0,
            contrastive_weight=0.0,
        )


@dataclass(frozen=True)
class Estimate:
    """Value and gradients of one draw for one batch."""

    value: float  # the sum over subsets of D_S, -L_MIPD
    gradients: dict[str, Tensor]  # flat, by PARTS


def estimate(model: Model, latents: list[Tensor], loss: mcr_fast.MCRLoss) -> Estimate:
    """One draw. The latents hang on the graph of the encoders, which is kept."""
    leaves = [z.detach().requires_grad_() for z in latents]
    out = loss(leaves, None, fusion=model.fusion)
    of_latents = torch.autograd.grad(out.mipd, leaves)
    parameters = list(model.encoders.parameters())
    of_encoders = torch.autograd.grad(latents, parameters, of_latents, retain_graph=True)
    flat = {"latents": of_latents, "encoders": of_encoders}
    return Estimate(
        -out.mipd.item(),
        {part: torch.cat([x.flatten() for x in found]).double() for part, found in flat.items()},
    )


def step_gradient(model: Model, batch: Batch, loss: mcr_fast.MCRLoss) -> Tensor:
    """Of the encoders, of the whole of Algorithm 1."""
    gradients = torch.autograd.grad(model.loss(batch, loss), list(model.encoders.parameters()))
    return torch.cat([x.flatten() for x in gradients]).double()


class Spread:
    """Mean and variance of vectors that come one by one (Welford)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros((), dtype=torch.float64), 0.0

    def add(self, x: Tensor) -> None:
        self.count += 1
        before = x - self.mean
        self.mean = self.mean + before / self.count
        self.squares += float((before * (x - self.mean)).sum())

    def variance(self) -> float:
        """Expected squared distance from the mean."""
        return self.squares / (self.count - 1)


@dataclass(frozen=True)
class Between:
    """What differs from batch to batch, of the exact estimate; and of a whole step."""

    value: float
    encoders: float  # their gradient, of L_MIPD
    step: float  # the same, of a whole step


def between(model: Model, batches: Iterable[Batch]) -> Between:
    """Variances over batches."""
    exact, whole = Draw().loss(model), mcr_fast.MCRLoss(model.latent_dims, NUM_CLASSES)
    whole.num_permutations = "all"
    spreads = {name: Spread() for name in ("value", "encoders", "step")}
    for batch in batches:
        found = estimate(model, model.encode(batch.views), exact)
        spreads["value"].add(torch.tensor(found.value, dtype=torch.float64))
        spreads["encoders"].add(found.gradients["encoders"])
        spreads["step"].add(step_gradient(model, batch, whole))
    return Between(**{name: spread.variance() for name, spread in spreads.items()})


class Errors:
    """What the draws of one kind were off by, batch by batch."""

    def __init__(self) -> None:
        self.exact: list[float] = []
        self.bias: list[float] = []  # mean over a batch's draws
        self.variance: list[float] = []  # within a batch
        self.squared: dict[str, list[float]] = {part: [] for part in PARTS}
        self.size: dict[str, list[float]] = {part: [] for part in PARTS}
        self.cosine: list[float] = []  # of the encoders' gradient with the exact one
        self.predicted: list[float] = []

    def add(self, exact: Estimate, drawn: Sequence[Estimate]) -> None:
        errors = [found.value - exact.value for found in drawn]
        mean = fmean(errors)
        self.exact.append(exact.value)
        self.bias.append(mean)
        self.variance.append(sum((e - mean) ** 2 for e in errors) / (len(errors) - 1))
        for part in PARTS:
            true = exact.gradients[part]
            found = [x.gradients[part] for x in drawn]
            size = float(true @ true)
            self.size[part].append(size)
            self.squared[part].append(fmean(float((g - true).square().sum()) for g in found))
        true = exact.gradients["encoders"]
        pairs = ((x.gradients["encoders"], true) for x in drawn)
        self.cosine.append(fmean(float(torch.cosine_similarity(*p, dim=0)) for p in pairs))

    def row(self, noise: Between) -> dict[str, float]:
        """The columns of a result."""
        squared, size = ({p: fmean(x[p]) for p in PARTS} for x in (self.squared, self.size))
        # at the default weight, in the gradient that the optimizer gets
        weight = mcr_fast.MCRLoss([1, 1], 2).mipd_weight
        return {
            **_ratio("bias", self.bias, self.exact),
            "value_variance": fmean(self.variance) / noise.value,
            "value_predicted": fmean(self.predicted or [math.nan]) / noise.value,
            **{f"{part}_error": squared[part] / size[part] for part in PARTS},
            "encoders_cosine": fmean(self.cosine),
            "encoders_variance": squared["encoders"] / noise.encoders,
            "step_variance": weight**2 * squared["encoders"] / noise.step,
        }


def _ratio(name: str, part: Sequence[float], whole: Sequence[float]) -> dict[str, float]:
    """Of two means over batches, with its standard error."""
    ratio = fmean(part) / fmean(whole)
    residuals = [p - ratio * w for p, w in zip(part, whole, strict=True)]
    n = len(residuals)
    error = math.sqrt(sum(r * r for r in residuals) / (n * (n - 1))) / abs(fmean(whole))
    return {name: ratio, f"{name}_error": error}


def measure(
    model: Model,
    make: Callable[[torch.Generator], Batch],
    draws: Sequence[Draw],
    *,
    batches: int,
    draws_a_batch: int,
    batches_between: int,
    seed: int = 7,
) -> Iterator[tuple[Draw, dict[str, float]]]:
    """Every kind of draw on the same batches."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of the draws
    noise = between(model, (make(generator) for _ in range(batches_between)))
    errors = {draw: Errors() for draw in draws}
    losses = {draw: draw.loss(model) for draw in draws}
    for_all = Draw().loss(model)
    for _ in range(batches):
        latents = model.encode(make(generator).views)
        exact = estimate(model, latents, for_all)
        matrix = None
        if len(latents) == 2:  # subsets of one member alone, so donors are shared
            matrix = theory.pair_matrix(model.contributions(latents), [(0,), (1,)])
        for draw, loss in losses.items():
            errors[draw].add(exact, [estimate(model, latents, loss) for _ in range(draws_a_batch)])
            if matrix is not None:
                errors[draw].predicted.append(_predicted(matrix, draw))
    for draw in draws:
        yield draw, errors[draw].row(noise)


def _predicted(f: Tensor, draw: Draw) -> float:
    assert draw.count is not None
    of = theory.uniform_variance if draw.scheme == "uniform" else theory.cyclic_variance
    return of(f, draw.count)
