"""Train on two modalities, with the Multimodal Competition Regularizer (MCR) or without.

The loop to copy. Its methods differ in the loss of a batch alone: one modality, joint training,
multi-loss (joint, and a loss on each modality), and MCR, which is Algorithm 1 of the paper:
multi-loss and the regularizer. As a program it trains one model with MCR on digits seen and heard
(seconds); `digits_demo.py` compares all methods over many seeds.

    python examples/train_digits.py
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from digits_data import NUM_CLASSES, Digits, Split, find_loader
from torch import Tensor, nn

import mcr_fast

HIDDEN, LATENT = 128, 16
BATCH, LEARNING_RATE = 32, 1e-3
LOOK_EVERY = 4  # epochs


class TwoModalities(nn.Module):
    """An encoder for each modality, a linear fusion of their latents, a head on each latent."""

    def __init__(self, widths: Sequence[int], hidden: int = HIDDEN, latent: int = LATENT) -> None:
        super().__init__()
        self.encoders = nn.ModuleList([encoder(width, hidden, latent) for width in widths])
        self.fusion = nn.Linear(len(widths) * latent, NUM_CLASSES)
        self.heads = nn.ModuleList([nn.Linear(latent, NUM_CLASSES) for _ in widths])

    def encode(self, inputs: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Inputs [N, D_m] -> latents [N, D]."""
        return [encode(x) for encode, x in zip(self.encoders, inputs, strict=True)]

    def fuse(self, latents: list[Tensor]) -> Tensor:
        """Latents [N, D] -> logits [N, C]."""
        return self.fusion(torch.cat(latents, dim=1))


def encoder(width: int, hidden: int, latent: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, latent),
    )


BatchLoss = Callable[[TwoModalities, Split], Tensor]


def alone(modality: int) -> BatchLoss:
    """One modality, its encoder and its head; the rest of the model is not used."""

    def loss(model: TwoModalities, batch: Split) -> Tensor:
        latent = model.encoders[modality](batch.inputs[modality])
        return F.cross_entropy(model.heads[modality](latent), batch.labels)

    return loss


def joint(model: TwoModalities, batch: Split) -> Tensor:
    """The task loss of the fused logits, nothing else."""
    return F.cross_entropy(model.fuse(model.encode(batch.inputs)), batch.labels)


def multi_loss(unimodal: float) -> BatchLoss:
    """The task loss, and each modality's own."""

    def loss(model: TwoModalities, batch: Split) -> Tensor:
        latents = model.encode(batch.inputs)
        total = F.cross_entropy(model.fuse(latents), batch.labels)
        for head, z in zip(model.heads, latents, strict=True):
            total = total + unimodal * F.cross_entropy(head(z), batch.labels)
        return total

    return loss


def mcr(unimodal: float, mipd: float, contrastive: float, latent: int = LATENT) -> BatchLoss:
    """Algorithm 1 of the paper: the task loss, each modality's own, and the regularizer."""
    regularizer = mcr_fast.MCRLoss(
        [latent, latent], NUM_CLASSES, mipd_weight=mipd, contrastive_weight=contrastive
    )
    objective = mcr_fast.MCRObjective(regularizer, unimodal_weight=unimodal)

    def loss(model: TwoModalities, batch: Split) -> Tensor:
        latents = model.encode(batch.inputs)
        out = objective(latents, batch.labels, fusion=model.fusion, unimodal_heads=model.heads)
        return out.loss

    return loss


METHODS: dict[str, Callable[..., BatchLoss]] = {
    "first alone": partial(alone, 0),
    "second alone": partial(alone, 1),
    "joint": lambda: joint,
    "multi-loss": multi_loss,
    "MCR": mcr,
    "MCR without L_MIPD": lambda unimodal, mipd, contrastive: mcr(unimodal, 0.0, contrastive),
    "MCR without L_Con": lambda unimodal, mipd, contrastive: mcr(unimodal, mipd, 0.0),
}


def train(
    batch_loss: BatchLoss,
    digits: Digits,
    epochs: int,
    seed: int,
    monitor: mcr_fast.MCRMonitor | None = None,
) -> TwoModalities:
    """One model; the seed sets first weights and batches, alike for every loss."""
    torch.manual_seed(seed)
    model = TwoModalities(digits.widths)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    for epoch in range(epochs):
        order = torch.randperm(len(digits.train), generator=generator)
        for index in order[: len(order) // BATCH * BATCH].split(BATCH):
            loss = batch_loss(model, digits.train.rows(index))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if monitor is not None and epoch % LOOK_EVERY == 0:
            look(model, digits.validation, monitor)
    return model


@torch.no_grad()
def look(model: TwoModalities, split: Split, monitor: mcr_fast.MCRMonitor) -> None:
    """An update a look: who decides, on rows that are not trained on, whatever the loss is.

    Where the batches' own rows will do, `monitor.watch(objective)` before training is all it takes.
    """
    latents = model.encode(split.inputs)
    regularizer = mcr_fast.MCRLoss(
        [LATENT, LATENT], NUM_CLASSES, num_permutations=8, contrastive_weight=0.0
    ).eval()
    out = regularizer(latents, None, fusion=model.fusion)
    alone = [head(z) for head, z in zip(model.heads, latents, strict=True)]
    monitor.update(out, split.labels, alone)


def main() -> None:
    torch.set_num_threads(1)  # layers this small gain nothing from more
    digits = find_loader()(seed=0).scaled(0.05)
    monitor = mcr_fast.MCRMonitor(digits.names, every=1, stride=1)  # a record a look
    # The demo's weights (digits_settings.py): what validation chose here, not defaults.
    loss = mcr(unimodal=10.0, mipd=0.01, contrastive=3.0)
    model = train(loss, digits, epochs=120, seed=0, monitor=monitor)
    print(monitor.summary())
    with torch.no_grad():
        predicted = model.fuse(model.encode(digits.test.inputs)).argmax(1)
    print(f"Test accuracy {(predicted == digits.test.labels).double().mean().item():.1%}")


if __name__ == "__main__":
    main()
