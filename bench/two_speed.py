"""What the regularizer does for accuracy: a small task whose modalities are learned at two speeds.

The fast modality is noisy, but a linear map of it says most. The slow one says more, but each bit
of the label is the exclusive or of two of its signs, and its values are small, so that an encoder
takes long to find it. Joint training is content with the fast one.

    python -m bench two_speed [--seeds 8] [--out DIR]
"""

import argparse
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import mcr_fast
from bench import machine, results

NUM_CLASSES, BITS = 8, 3
FAST_WIDTH, SLOW_WIDTH = 32, 2 * BITS
LATENT = 16
FAST_NOISE = 2.5  # standard deviation, that of the classes' means is 1
SLOW_NOISE, SLOW_SCALE = 0.5, 0.3  # of signs of size 1, then of all
TRAIN, TEST = 512, 4000
BATCH, EPOCHS, LEARNING_RATE = 64, 80, 1e-3

# fast [B, 32], slow [B, 6], labels [B] -> loss of the batch
BatchLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Split:
    fast: Tensor  # [N, 32]
    slow: Tensor  # [N, 6]
    labels: Tensor  # [N]


def make_split(num_rows: int, generator: torch.Generator) -> Split:
    """Rows of the task; the classes' means are the same for every generator."""
    means = torch.randn(NUM_CLASSES, FAST_WIDTH, generator=torch.Generator().manual_seed(5))
    labels = torch.randint(NUM_CLASSES, (num_rows,), generator=generator)
    fast = means[labels]
    fast = fast + FAST_NOISE * torch.randn(fast.shape, generator=generator)
    bits = (labels[:, None] >> torch.arange(BITS)) & 1  # [N, 3]
    first = torch.randint(2, bits.shape, generator=generator)
    signs = 2.0 * torch.cat([first, first ^ bits], dim=1) - 1
    slow = signs + SLOW_NOISE * torch.randn(signs.shape, generator=generator)
    return Split(fast, SLOW_SCALE * slow, labels)


@dataclass(frozen=True)
class Model:
    """Two encoders, a linear head on the latents of each, and a linear fusion of both."""

    encoders: nn.ModuleList
    heads: nn.ModuleList
    fusion: nn.Linear

    @staticmethod
    def fresh() -> "Model":
        encoders = [
            nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, LATENT))
            for width in (FAST_WIDTH, SLOW_WIDTH)
        ]
        fusion = nn.Linear(2 * LATENT, NUM_CLASSES)
        heads = [nn.Linear(LATENT, NUM_CLASSES) for _ in encoders]
        return Model(nn.ModuleList(encoders), nn.ModuleList(heads), fusion)

    def parameters(self) -> list[nn.Parameter]:
        return [p for part in (self.encoders, self.heads, self.fusion) for p in part.parameters()]

    def encode(self, fast: Tensor, slow: Tensor) -> list[Tensor]:
        return [encode(x) for encode, x in zip(self.encoders, (fast, slow), strict=True)]

    def unimodal(self, latents: list[Tensor], labels: Tensor) -> Tensor:
        """The sum of the modalities' own task losses."""
        pairs = zip(self.heads, latents, strict=True)
        return torch.stack([cross_entropy(head(z), labels) for head, z in pairs]).sum()


def algorithm(
    unimodal_weight: float, options: dict[str, Any] | None = None
) -> Callable[[Model], BatchLoss]:
    """Algorithm 1 of the paper with these options of the regularizer; without it if None."""

    def form(model: Model) -> BatchLoss:
        regularizer = None
        if options is not None:
            regularizer = mcr_fast.MCRLoss([LATENT, LATENT], NUM_CLASSES, **options)

        def loss(fast: Tensor, slow: Tensor, labels: Tensor) -> Tensor:
            latents = model.encode(fast, slow)
            unimodal = unimodal_weight * model.unimodal(latents, labels)
            if regularizer is None:
                return cross_entropy(model.fusion(torch.cat(latents, dim=1)), labels) + unimodal
            out = regularizer(latents, labels, fusion=model.fusion)
            return cross_entropy(out.logits, labels) + unimodal + out.loss

        return loss

    return form


FORMS = {
    "task": algorithm(0.0),
    "task + 1 unimodal": algorithm(1.0),
    "task + 3 unimodal": algorithm(3.0),
    "task + regularizer": algorithm(0.0, {}),
    "... its L_MIPD only": algorithm(0.0, {"contrastive_weight": 0.0}),
    "... its L_Con only": algorithm(0.0, {"mipd_weight": 0.0}),
    "task + 1 unimodal + regularizer": algorithm(1.0, {}),
    "... with 0.3 L_Con": algorithm(1.0, {"contrastive_weight": 0.3}),
    "task + 3 unimodal + regularizer": algorithm(3.0, {}),
}
MULTI_LOSS = {  # the same without the regularizer, where there are unimodal losses
    "task + 1 unimodal + regularizer": "task + 1 unimodal",
    "... with 0.3 L_Con": "task + 1 unimodal",
    "task + 3 unimodal + regularizer": "task + 3 unimodal",
}


@dataclass(frozen=True)
class Score:
    """In percent, of the test rows."""

    accuracy: float
    slow_importance: float  # the slow modality's share of the divergences of both


@torch.no_grad()
def score(model: Model, test: Split) -> Score:
    latents = model.encode(test.fast, test.slow)
    logits = model.fusion(torch.cat(latents, dim=1))
    watcher = mcr_fast.MCRLoss([LATENT, LATENT], NUM_CLASSES, contrastive_weight=0)
    generator = torch.Generator().manual_seed(0)
    importance = watcher(latents, None, fusion=model.fusion, generator=generator).importance
    hits = (logits.argmax(dim=1) == test.labels).double()
    return Score(100 * hits.mean().item(), 100 * importance[1].item())


def train(
    form: Callable[[Model], BatchLoss],
    seed: int,
    fresh: Callable[[], Model],
    *,
    steps: int = EPOCHS * TRAIN // BATCH,
    batch: int = BATCH,
) -> Score:
    """One model; the seed sets data, first weights and batches, alike for every form."""
    generator = torch.Generator().manual_seed(1000 + seed)
    rows, test = make_split(TRAIN, generator), make_split(TEST, generator)
    torch.manual_seed(seed)
    model = fresh()
    batch_loss = form(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for index in islice(_batches(batch, generator), steps):
        optimizer.zero_grad()
        batch_loss(rows.fast[index], rows.slow[index], rows.labels[index]).backward()
        optimizer.step()
    return score(model, test)


def _batches(batch: int, generator: torch.Generator) -> Iterator[Tensor]:  # [batch] each
    """Rows of the training set, epoch after epoch."""
    while True:
        yield from torch.randperm(TRAIN, generator=generator).split(batch)


FOLDER = results.RESULTS / "two_speed"  # accuracy is no property of a machine
COLUMNS = ("form", "seed", "accuracy", "slow_importance", *results.ENVIRONMENT)
HEADER = (
    *("losses", "test accuracy, %", "against task, points", "against multi-loss, points"),
    "slow modality's importance, %",
)


def run(seeds: Iterable[int]) -> list[dict[str, str]]:
    """Every form with every seed: a row each."""
    torch.set_num_threads(1)  # the layers are too small to share
    rows = []
    for seed in seeds:
        for name, form in FORMS.items():
            found = train(form, seed, Model.fresh)
            numbers = {key: f"{value:.2f}" for key, value in vars(found).items()}
            where = machine.environment() | {"load": f"{machine.load():.1f}"}
            rows.append({"form": name, "seed": str(seed), **numbers, **where})
    return rows


def summary(rows: Sequence[results.Row]) -> list[tuple[str, ...]]:
    """A line for each form under `HEADER`; the differences are those of equal seeds."""
    by_form: dict[str, list[results.Row]] = {}
    for row in rows:
        by_form.setdefault(row["form"], []).append(row)
    accuracy = {name: [float(row["accuracy"]) for row in found] for name, found in by_form.items()}

    def against(name: str, other: str | None) -> str:
        if other not in accuracy or other == name:
            return ""
        pairs = zip(accuracy[name], accuracy[other], strict=True)
        return _spread([a - b for a, b in pairs], "+.1f")

    return [
        (
            name,
            _spread(accuracy[name]),
            against(name, "task"),
            against(name, MULTI_LOSS.get(name)),
            _spread([float(row["slow_importance"]) for row in by_form[name]]),
        )
        for name in FORMS
        if name in by_form
    ]


def _spread(values: Sequence[float], form: str = ".1f") -> str:
    """Mean and its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):{form}} ± {error:.1f}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=8, help="models of each form")
    parser.add_argument("--out", type=Path, help="folder, instead of bench/results/two_speed")
    parser.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """Train, print, and replace the results."""
    path = (options.out or FOLDER) / "two_speed.csv"
    rows = run(range(options.seeds))
    results.write(path, rows, COLUMNS)
    print(tabulate(summary(rows), HEADER, disable_numparse=True))
    print(f"Means over {options.seeds} seeds and their standard errors; written to {path}")
    return 0
