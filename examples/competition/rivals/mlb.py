"""MLB: multi-loss, and weak modalities sped up, strong ones slowed.

Kontras, Chatzichristos, Blaschko and De Vos, Improving Multimodal Learning with Multi-Loss Gradient
Modulation, BMVC 2024.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import Batch, MultimodalModel
from ..strategy import mean_of_others, true_class_scores
from .multi_loss import MultiLoss


def coefficients(scores: Tensor, alpha: float, beta: float, mode: Literal[1, 2] = 2) -> Tensor:
    """Mean probabilities of the true class [M] -> factors [M].

    g, the mean of the others over the own one, is below 1 for a modality that is ahead:
    1 + tanh(alpha * (g - 1)), and where g > 1 the tanh is multiplied by beta - 1 in mode 2.
    """
    bounded = torch.tanh(alpha * (mean_of_others(scores) / scores.clamp_min(1e-8) - 1))
    if mode == 2:
        bounded = torch.where(bounded > 0, (beta - 1) * bounded, bounded)
    return 1 + bounded


class MLB(MultiLoss):
    """CE(f) + sum over m of weight_m * CE(o_m), own heads; gradients of modality m times k_m.

    They are those of its encoder and of the weight of its head, as in the authors' code; the
    head's bias is left as it is. k_m lies between 1 - tanh(alpha) and beta. Scores are those of the
    own heads. For more than two modalities it is published too, with the mean of the others.

    Args:
        model: what is trained.
        weight: of the unimodal losses, a number or one a modality.
        alpha: how fast the factor reaches its bounds.
        beta: the upper bound of mode 2. Below 1 it slows a modality that is behind as well, as
            published for UCF. alpha and beta: .5 and 10 (CREMA-D), 2 and 1 (AVE), 2 and .5 (UCF).
        mode: 1 has no beta, as if it were 2; 2 has it.
        as_lr: scale the learning rates instead of the gradients, see `scale_gradients`.
    """

    published = "BMVC 2024"

    def __init__(
        self,
        model: MultimodalModel,
        weight: float | Sequence[float] = 1.0,
        alpha: float = 0.5,
        beta: float = 10.0,
        mode: Literal[1, 2] = 2,
        as_lr: bool = False,
    ) -> None:
        super().__init__(model, weight)
        self.alpha, self.beta, self.as_lr = alpha, beta, as_lr
        self.mode: Literal[1, 2] = mode
        self._coefficients = torch.ones(model.num_modalities)

    def scaled(self, modality: int) -> list[nn.Parameter]:
        return [*super().scaled(modality), self.model.heads[modality].get_parameter("weight")]

    def loss(self, batch: Batch) -> Tensor:
        latents, labels = self.model.encode(batch.inputs), batch.labels
        own = self.model.own(latents)
        scores = true_class_scores(own, labels) / len(labels)
        self._coefficients = coefficients(scores, self.alpha, self.beta, self.mode)
        task = F.cross_entropy(self.model.fuse(latents), labels)
        return self.weighted(task, [F.cross_entropy(o, labels) for o in own])

    def after_backward(self) -> None:
        self.scale_gradients(self._coefficients, self.as_lr)
