"""UMT: joint training, the encoders held near those of unimodal trainings.

Du, Teng, Li, Liu, Yuan, Wang, Yuan, Zhao, On Uni-Modal Feature Learning in Supervised Multi-Modal
Learning, ICML 2023 (arXiv 2305.01233).
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import Batch, MultimodalModel
from ..strategy import Strategy
from .unimodal import Unimodal


def frozen_encoders(teachers: Unimodal, model: MultimodalModel) -> torch.nn.ModuleList:
    """Copies of the teachers' best encoders, not to be trained; ValueError if they don't fit."""
    if teachers.best_model.widths != model.widths:
        raise ValueError(f"teachers of widths {teachers.best_model.widths}, not {model.widths}")
    return copy.deepcopy(teachers.best_model.encoders).requires_grad_(False).eval()


def distances(latents: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Sum over m of mean((z_m - t_m)^2), over rows and features: 0-d."""
    return torch.stack([F.mse_loss(z, t) for z, t in zip(latents, targets, strict=True)]).sum()


class UMT(Strategy):
    """CE(f) + scale * `distances` to the latents t_m of the frozen teachers, in eval mode.

    The paper takes this where features of several modalities together matter, and the ensemble
    where they do not; which it is, it decides by comparing the ensemble with a head on frozen
    encoders (`frozen.Frozen`).

    Args:
        model: what is trained.
        teachers: trained unimodal models with encoders like the model's.
        scale: BalanceBenchmark's is 10.
    """

    published = "ICML 2023"
    needs_teachers = True

    def __init__(self, model: MultimodalModel, teachers: Unimodal, scale: float = 10.0) -> None:
        super().__init__(model)
        self.teachers, self.scale = frozen_encoders(teachers, model), scale

    def train(self, mode: bool = True) -> "UMT":
        super().train(mode)
        self.teachers.eval()
        return self

    def loss(self, batch: Batch) -> Tensor:
        latents = self.model.encode(batch.inputs)
        with torch.no_grad():
            targets = [teach(x) for teach, x in zip(self.teachers, batch.inputs, strict=True)]
        task = F.cross_entropy(self.model.fuse(latents), batch.labels)
        return task + self.scale * distances(latents, targets)
