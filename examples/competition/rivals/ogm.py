"""OGM and OGM-GE: slow the encoder of the modality that is ahead.

Peng et al., Balanced Multimodal Learning via On-the-fly Gradient Modulation, CVPR 2022.
"""

import torch
from torch import Tensor

from ..model import Batch, MultimodalModel
from ..strategy import Strategy, mean_of_others, true_class_scores


def coefficients(scores: Tensor, alpha: float) -> Tensor:
    """[M] -> [M]: 1 - tanh(alpha * rho) where rho, a score over the mean of the others, is above 1.

    It jumps at rho = 1, from 1 to 1 - tanh(alpha), as published.
    """
    rho = scores / mean_of_others(scores)
    return torch.where(rho > 1, 1 - torch.tanh(alpha * rho), torch.ones_like(rho))


class OGM(Strategy):
    """CE(f); each encoder's gradient times its coefficient, and with `noise` (GE) Gaussian noise.

    Scores are those of the slices of the linear fusion. The noise has the standard deviation of
    each gradient before it is scaled, and goes to weights of at least `noise_dims` dimensions:
    published for convolutions, here for all matrices.

    Args:
        model: what is trained.
        alpha: how much; published .3 to 1.
        noise: whether noise is added (OGM-GE).
        window: the epochs, the end not included, in which gradients are changed; None for all.
        noise_dims: the fewest dimensions of a weight that gets noise.
        as_lr: scale the learning rates instead of the gradients, see `scale_gradients`.
    """

    published = "CVPR 2022"

    def __init__(
        self,
        model: MultimodalModel,
        alpha: float = 0.8,
        noise: bool = True,
        window: tuple[int, int] | None = None,
        noise_dims: int = 2,
        as_lr: bool = False,
    ) -> None:
        super().__init__(model)
        self.alpha, self.noise, self.window = alpha, noise, window
        self.noise_dims, self.as_lr = noise_dims, as_lr
        self._epoch = 0
        self._coefficients = torch.ones(model.num_modalities)

    def first_epoch(self) -> int:
        return 0 if self.window is None else self.window[0]

    def epoch_start(self, epoch: int, train: Batch) -> None:
        self._epoch = epoch

    def loss(self, batch: Batch) -> Tensor:
        latents = self.model.encode(batch.inputs)
        with torch.no_grad():
            scores = true_class_scores(self.model.slices(latents), batch.labels)
        self._coefficients = coefficients(scores, self.alpha)
        return torch.nn.functional.cross_entropy(self.model.fuse(latents), batch.labels)

    def after_backward(self) -> None:
        if self.window is not None and not self.window[0] <= self._epoch < self.window[1]:
            self.lr_scale = [1.0] * self.model.num_modalities
            return
        grads = [
            p.grad
            for encoder in self.model.encoders
            for p in encoder.parameters()
            if self.noise and p.grad is not None and p.dim() >= self.noise_dims
        ]
        noise = [torch.randn_like(grad) * (grad.std() + 1e-8) for grad in grads]
        self.scale_gradients(self._coefficients, self.as_lr)
        for grad, added in zip(grads, noise, strict=True):
            grad.add_(added)
