"""The model that every strategy trains: an encoder a modality, a linear fusion, own heads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """Rows of a data set: one input a modality, and the labels."""

    inputs: tuple[Tensor, ...]  # M of [N, ...]
    labels: Tensor  # [N] int64

    def rows(self, index: Tensor) -> "Batch":
        """The rows that an index [B] names."""
        return Batch(tuple(x[index] for x in self.inputs), self.labels[index])

    def __len__(self) -> int:
        return len(self.labels)


def mlp(width_in: int, hidden: int, width_out: int) -> nn.Module:
    """An encoder of vectors: two hidden layers."""
    return nn.Sequential(
        nn.Linear(width_in, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, width_out),
    )


class MultimodalModel(nn.Module):
    """Encoders, a linear fusion of their latents, and a head on each latent.

    The heads are there for every strategy, so that a seed gives all of them the same first weights.
    """

    def __init__(self, encoders: Sequence[nn.Module], widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.widths, self.classes = tuple(widths), classes
        self.encoders = nn.ModuleList(encoders)
        self.fusion = nn.Linear(sum(widths), classes)
        self.heads = nn.ModuleList([nn.Linear(width, classes) for width in widths])

    @property
    def num_modalities(self) -> int:
        return len(self.widths)

    def encode(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Inputs, one a modality -> latents [N, D_m]."""
        return [encode(x) for encode, x in zip(self.encoders, inputs, strict=True)]

    def fuse(self, latents: Sequence[Tensor]) -> Tensor:
        """Latents [N, D_m] -> logits [N, C]."""
        return self.fusion(torch.cat(tuple(latents), dim=1))

    def own(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents [N, D_m] -> logits [N, C] of each modality's own head."""
        return [head(z) for head, z in zip(self.heads, latents, strict=True)]

    def slices(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """What each latent adds to the fused logits, [N, C]: z_m W_m^T + b / M."""
        columns = self.fusion.weight.split(self.widths, dim=1)
        bias = self.fusion.bias / self.num_modalities
        return [z @ w.T + bias for z, w in zip(latents, columns, strict=True)]
