"""MMPareto: a direction for each encoder that neither the fused nor its own loss objects to.

Wei and Hu, MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance, ICML 2024.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..model import Batch, MultimodalModel
from .multi_loss import MultiLoss


def weight_of_fused(fused: Tensor, own: Tensor) -> Tensor:
    """The weight of the fused loss's gradient beside the own loss's, both [P]; 0-d.

    1/2 if they agree (a cosine above 0); else the weight at which fused * k + own * (1 - k) is
    shortest, within .001 and .999.
    """
    dot = fused @ own
    squared_distance = fused @ fused + own @ own - 2 * dot
    # of two gradients that are 0 any weight is right
    tiny = torch.finfo(dot.dtype).tiny
    shortest = ((own @ own - dot) / squared_distance.clamp_min(tiny)).clamp(0.001, 0.999)
    return torch.where(dot > 0, torch.full_like(dot, 0.5), shortest)


def combine(fused: Tensor, own: Tensor, weight: Tensor) -> Tensor:
    """The gradient of one tensor from the two losses': 2 (k * fused + (1 - k) * own).

    If that is shorter than fused + own it gets that length first; if it is 0 it stays 0.
    """
    mixed = 2 * weight * fused + 2 * (1 - weight) * own
    length, plain = mixed.norm(), (fused + own).norm()
    stretch = torch.where((length < plain) & (length > 0), plain / length, torch.ones_like(length))
    return stretch * mixed


def gradients(loss: Tensor, parameters: Sequence[Tensor], keep: bool) -> tuple[Tensor, ...]:
    """Of a loss by each parameter, 0 where it does not depend on it; `keep` keeps the graph."""
    return torch.autograd.grad(
        loss, parameters, retain_graph=keep, allow_unused=True, materialize_grads=True
    )


class MMPareto(MultiLoss):
    """CE(f) + sum of weight_m * CE(o_m), own heads; the two gradients of each encoder are combined.

    The weight is one for an encoder, from all its parameters, the length one for each tensor.
    Fusion and heads keep the plain gradient. The own losses share no parameter, so that one
    backward pass serves all of them: two in a step, where the authors' code has M + 2. Their
    solver counts every dot product twice, which changes nothing.

    Args:
        model: what is trained.
        weight: of the unimodal losses, a number or one a modality; published 1.
        gamma: factor of the encoders' gradients; published 1.5 (CREMA-D), .5 (AVE), 3 (UCF), with
            SGD. It is the same in every step, so that under Adam it cancels.
        as_lr: multiply the encoders' learning rates by gamma instead of their gradients, see
            `scale_gradients`. Under SGD without momentum both are the same.
    """

    published = "ICML 2024"

    def __init__(
        self,
        model: MultimodalModel,
        weight: float | Sequence[float] = 1.0,
        gamma: float = 1.5,
        as_lr: bool = False,
    ) -> None:
        super().__init__(model, weight)
        self.gamma, self.as_lr = gamma, as_lr
        self._losses: list[Tensor] = []

    def loss(self, batch: Batch) -> Tensor:
        fused, own = self.losses(self.model.encode(batch.inputs), batch.labels)
        self._losses = [fused, self.weighted(torch.zeros_like(fused), own)]
        return fused + self._losses[1]

    def backward(self, loss: Tensor) -> None:
        fused, own = self._losses
        # not kept: a strategy is copied, and graphs cannot be
        self._losses = []
        parameters = [p for p in self.parameters() if p.requires_grad]
        of_fused = gradients(fused, parameters, keep=True)
        of_own = gradients(own, parameters, keep=False)
        pairs = dict(zip(parameters, zip(of_fused, of_own, strict=True), strict=True))
        for p, (v, u) in pairs.items():
            p.grad = v + u
        for m in range(self.model.num_modalities):
            self._combine([(p, *pairs[p]) for p in self.scaled(m) if p in pairs])

    def after_backward(self) -> None:
        self.scale_gradients([self.gamma] * self.model.num_modalities, self.as_lr)

    def _combine(self, encoder: list[tuple[nn.Parameter, Tensor, Tensor]]) -> None:
        """Set the gradients of an encoder's parameters from those of the two losses."""
        if not encoder:
            return
        fused = torch.cat([v.flatten() for _, v, _ in encoder])
        own = torch.cat([u.flatten() for _, _, u in encoder])
        weight = weight_of_fused(fused, own)
        for p, v, u in encoder:
            p.grad = combine(v, u, weight)
