"""Train on two halves of digits, with and without the Multimodal Competition Regularizer (MCR).

The left half of each image is one modality, the right half, under noise, the other. Joint training
leans on the clean half and leaves the noisy one half-learned. Compared: each half alone, their
ensemble, joint training, multi-loss (joint, and a loss on each half) and MCR (multi-loss, and
`mcr_fast.MCRLoss`: Algorithm 1 of the paper, which needs the loss on each half, see
docs/training.md). Prints a table, writes a plot. Under two minutes on two cores.

    python examples/train_digits.py [--seeds 5] [--epochs 80] [--out demo-out] [--quick] [--tune]
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from digits_data import NUM_CLASSES, PIXELS, Digits, Split, degrade, load_halves
from digits_evaluate import ALONE, AfterEpoch, Curve, Scores, ensembled, follow, score
from digits_report import plot, print_report
from digits_step_time import StepTime, fused_against_released
from digits_tune import Fit, tune
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from tqdm import tqdm

import mcr_fast

HIDDEN, LATENT = 128, 16
BATCH, LEARNING_RATE = 32, 1e-3

# Chosen with `--tune`, on the validation images and with seeds that the table does not use. The
# noise is the least at which joint training lets the right half decide less than a quarter; the
# weights are those of the highest validation accuracy, of 5 settings for multi-loss, 36 for MCR.
NOISE = 1.0
MULTI_LOSS_WEIGHTS = (0.1,)  # of the unimodal losses
MCR_WEIGHTS = (3.0, 0.01, 3.0)  # of the unimodal losses, L_MIPD and L_Con


class TwoHalves(nn.Module):
    """An encoder for each half, a linear fusion of their latents, and a head on each latent."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleList([encoder(), encoder()])
        self.fusion = nn.Linear(2 * LATENT, NUM_CLASSES)
        self.heads = nn.ModuleList([nn.Linear(LATENT, NUM_CLASSES) for _ in range(2)])

    def encode(self, halves: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Two halves [N, 32] -> two latents [N, D]."""
        return [encode(x) for encode, x in zip(self.encoders, halves, strict=True)]

    def fuse(self, latents: list[Tensor]) -> Tensor:
        """Two latents [N, D] -> logits [N, C]."""
        return self.fusion(torch.cat(latents, dim=1))


def encoder() -> nn.Module:
    return nn.Sequential(
        nn.Linear(PIXELS, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, LATENT),
    )


BatchLoss = Callable[[TwoHalves, Split], Tensor]


def half_alone(half: int) -> BatchLoss:
    """One half, its encoder and its head; the rest of the model is not used."""

    def loss(model: TwoHalves, batch: Split) -> Tensor:
        latent = model.encoders[half](batch.halves[half])
        return F.cross_entropy(model.heads[half](latent), batch.labels)

    return loss


def joint(model: TwoHalves, batch: Split) -> Tensor:
    """The task loss of the fused logits, nothing else."""
    return F.cross_entropy(model.fuse(model.encode(batch.halves)), batch.labels)


def unimodal_losses(model: TwoHalves, latents: list[Tensor], labels: Tensor) -> Tensor:
    losses = [
        F.cross_entropy(head(z), labels) for head, z in zip(model.heads, latents, strict=True)
    ]
    return torch.stack(losses).sum()


def multi_loss(unimodal: float) -> BatchLoss:
    """The task loss, and each half's own."""

    def loss(model: TwoHalves, batch: Split) -> Tensor:
        latents = model.encode(batch.halves)
        task = F.cross_entropy(model.fuse(latents), batch.labels)
        return task + unimodal * unimodal_losses(model, latents, batch.labels)

    return loss


def mcr(unimodal: float, mipd: float, contrastive: float) -> BatchLoss:
    """Algorithm 1 of the paper: the task loss, each half's own, and the regularizer."""
    regularizer = mcr_fast.MCRLoss(
        [LATENT, LATENT], NUM_CLASSES, mipd_weight=mipd, contrastive_weight=contrastive
    )

    def loss(model: TwoHalves, batch: Split) -> Tensor:
        latents = model.encode(batch.halves)
        # all that a loop with multi-loss needs: this call, its logits, its loss
        out = regularizer(latents, batch.labels, fusion=model.fusion)
        task = F.cross_entropy(out.logits, batch.labels)
        return task + unimodal * unimodal_losses(model, latents, batch.labels) + out.loss

    return loss


def train(
    batch_loss: BatchLoss,
    digits: Digits,
    epochs: int,
    seed: int,
    after_epoch: AfterEpoch = lambda model: None,
) -> TwoHalves:
    """One model; the seed sets first weights, batches and noise, alike for every loss."""
    torch.manual_seed(seed)
    model = TwoHalves()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(epochs):
        seen = degrade(digits.train, digits.noise, generator)
        order = torch.randperm(len(seen), generator=generator)
        for index in order[: len(order) // BATCH * BATCH].split(BATCH):
            loss = batch_loss(model, seen.rows(index))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        after_epoch(model)
    return model


LOSSES: dict[str, Callable[..., BatchLoss]] = {
    "left half alone": functools.partial(half_alone, 0),
    "right half alone": functools.partial(half_alone, 1),
    "joint": lambda: joint,
    "multi-loss": multi_loss,
    "MCR": mcr,
}
WEIGHTS: dict[str, tuple[float, ...]] = {"multi-loss": MULTI_LOSS_WEIGHTS, "MCR": MCR_WEIGHTS}


@dataclass(frozen=True)
class Trained:
    model: TwoHalves
    curve: Curve


def compare(digits: Digits, epochs: int, seeds: int) -> dict[str, list[Trained]]:
    """Every method with every seed."""
    trained: dict[str, list[Trained]] = {method: [] for method in LOSSES}
    with tqdm(total=len(LOSSES) * seeds * epochs, unit="epoch") as bar:
        for seed in range(seeds):
            for method in LOSSES:
                bar.set_description(f"seed {seed + 1} of {seeds}, {method}")
                batch_loss = LOSSES[method](*WEIGHTS.get(method, ()))
                curve = Curve([], [])
                after_epoch = follow(digits, method, curve, bar)
                model = train(batch_loss, digits, epochs, seed, after_epoch)
                trained[method].append(Trained(model, curve))
    return trained


def final_scores(
    digits: Digits, split: Split, trained: dict[str, list[Trained]]
) -> dict[str, list[Scores]]:
    """All models on one split; the ensemble averages the two halves' probabilities."""
    scores = {
        method: [score(t.model, method, digits, split) for t in runs]
        for method, runs in trained.items()
    }
    pairs = zip(*(scores[method] for method in ALONE), strict=True)
    ensemble = [ensembled(left, right) for left, right in pairs]
    order = [*ALONE, "ensemble", *(m for m in scores if m not in ALONE)]
    return {m: ensemble if m == "ensemble" else scores[m] for m in order}


def time_losses(model: TwoHalves, split: Split, turns: int) -> StepTime | None:
    """The regularizer on one batch of a trained model, as published and as here."""
    batch = split.rows(torch.arange(BATCH))
    with torch.no_grad():
        latents = model.encode(batch.halves)
    return fused_against_released(latents, batch.labels, model.fusion, turns)


def validation_fit(epochs: int) -> Fit:
    """What the sweeps see of a model: its scores on the validation images."""
    digits = functools.cache(load_halves)

    def fit(noise: float, method: str, weights: Sequence[float], seed: int) -> Scores:
        model = train(LOSSES[method](*weights), digits(noise), epochs, seed)
        return score(model, method, digits(noise), digits(noise).validation)

    return fit


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="models of each kind")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder of the plot")
    parser.add_argument("--quick", action="store_true", help="2 seeds, 3 epochs: does it run")
    parser.add_argument("--tune", action="store_true", help="rerun the sweeps (minutes), and stop")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.epochs = 2, 3
    return arguments


def main() -> None:
    arguments = parse_arguments()
    start = time.perf_counter()
    # Layers and probes are so small that sharing one among threads costs more than it saves.
    torch.set_num_threads(1)
    threadpool_limits(1)
    if arguments.tune:
        tune(validation_fit(arguments.epochs), NOISE)
        return
    digits = load_halves(NOISE)
    trained = compare(digits, arguments.epochs, arguments.seeds)
    validation = final_scores(digits, digits.validation, trained)
    test = final_scores(digits, digits.test, trained)  # the one look at the test images
    timing = time_losses(trained["MCR"][-1].model, digits.validation, 2 if arguments.quick else 7)
    print_report(test, validation, timing)
    curves = {m: [t.curve for t in runs] for m, runs in trained.items() if m not in ALONE}
    path = plot(curves, test, arguments.out / "train_digits.png")
    print(f"Plot: {path}. {time.perf_counter() - start:.0f} seconds in all.")


if __name__ == "__main__":
    main()
