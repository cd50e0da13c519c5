"""What the recipes share: the halves of digits as two modalities, and a model of both."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import mcr_fast

sys.path.append(str(Path(__file__).resolve().parent.parent))
from digits_data import NUM_CLASSES, load_halves

PIXELS = 32  # of a half
HIDDEN, LATENT, BATCH = 128, 16, 32
HALVES = ("left", "right")


def load() -> tuple[TensorDataset, TensorDataset]:
    """Rows of (left [32], right [32] under noise, label): to train on, and to test with."""
    digits = load_halves(seed=0, train_share=0.2)
    train, test = (TensorDataset(*part.inputs, part.labels) for part in (digits.train, digits.test))
    return train, test


def encoder() -> nn.Module:
    return nn.Sequential(
        nn.Linear(PIXELS, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, LATENT),
    )


def make_objective(process_group: object = None, **options: object) -> mcr_fast.MCRObjective:
    """Algorithm 1, with weights of 3 for what is learned alone; L_Con over the group's rows."""
    regularizer = mcr_fast.MCRLoss(
        [LATENT, LATENT],
        NUM_CLASSES,
        mipd_weight=0.01,
        contrastive_weight=3.0,
        process_group=process_group,
    )
    return mcr_fast.MCRObjective(regularizer, unimodal_weight=3.0, **options)


class TwoHalves(nn.Module):
    """An encoder and a head for each half, a linear fusion, and the objective of all.

    The objective is inside, so that whatever wraps the model sees one forward and one loss.
    """

    def __init__(self, objective: mcr_fast.MCRObjective) -> None:
        super().__init__()
        self.encoders = nn.ModuleList([encoder(), encoder()])
        self.fusion = nn.Linear(2 * LATENT, NUM_CLASSES)
        self.heads = nn.ModuleList([nn.Linear(LATENT, NUM_CLASSES) for _ in range(2)])
        self.objective = objective

    def forward(self, left: Tensor, right: Tensor, labels: Tensor) -> mcr_fast.ObjectiveOutput:
        latents = [encode(x) for encode, x in zip(self.encoders, (left, right), strict=True)]
        return self.objective(latents, labels, fusion=self.fusion, unimodal_heads=self.heads)

    def predict(self, left: Tensor, right: Tensor) -> Tensor:  # [N, C]
        """The logits, with no label and no loss."""
        latents = [encode(x) for encode, x in zip(self.encoders, (left, right), strict=True)]
        return self.fusion(torch.cat(latents, dim=1))


@torch.no_grad()
def accuracy(model: TwoHalves, data: TensorDataset) -> float:
    """The share of rows that are predicted right."""
    device = next(model.parameters()).device
    left, right, labels = (x.to(device) for x in data.tensors)
    model.eval()
    right_ones = model.predict(left, right).argmax(1) == labels
    model.train()
    return right_ones.double().mean().item()


def report(epoch: int, seen: dict[str, float], tested: float) -> str:
    """A line for people, from what an `MCRMonitor` read; once an epoch, for that waits."""
    sides = [
        f"{name} importance {seen[f'importance/{name}']:.2f}, "
        f"alone {seen[f'unimodal_accuracy/{name}']:.1%}"
        for name in HALVES
    ]
    return (
        f"epoch {epoch + 1:3}: loss {seen['loss']:.3f}, task {seen['task']:.3f}; "
        f"{'; '.join(sides)}; test accuracy {tested:.1%}"
    )
