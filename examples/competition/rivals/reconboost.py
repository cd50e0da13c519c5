"""ReconBoost: the modalities take turns, each learning what the others do not tell yet.

Hua, Xu, Bao, Yang, Huang, ReconBoost: Boosting Can Achieve Modality Reconcilement, ICML 2024.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import Batch, MultimodalModel
from ..strategy import Strategy


def boosting_losses(
    logits: Tensor, others: Tensor, labels: Tensor, target_weight: float, others_weight: float
) -> Tensor:
    """Own logits [N, C], the sum of the others' [N, C] -> losses [N].

    -1/C * (target_weight - others_weight * q_y) * log p_y, p and q the softmax of the two. The mean
    over the classes, 1/C, is the published code's.
    """
    rows = torch.arange(len(labels), device=labels.device)
    q = others.detach().softmax(1)[rows, labels]
    log_p = logits.log_softmax(1)[rows, labels]
    return -(target_weight - others_weight * q) * log_p / logits.shape[1]


def agreement_loss(logits: Tensor, previous: Tensor) -> Tensor:
    """Mean squared difference of softmax(logits) and softmax(previous), the latter detached."""
    return F.mse_loss(logits.softmax(1), previous.detach().softmax(1))


class ReconBoost(Strategy):
    """Stage s trains modality s mod M on `boosting_losses`, then all so far on CE(sum of o_m).

    The ensemble has the modalities that had a stage, and predicts with the sum of their logits; the
    others are frozen during a stage. Published with SGD (momentum .9, made anew every stage), a
    learned factor on the sum and optionally a head in common, all three not done here. In the
    published code q_y of the very first stage is 1; here it is 1/C, of no other modality.

    Args:
        model: what is trained; its fusion is not used.
        stage_epochs, correction_epochs: epochs of the two parts; published 1 and 1 (CREMA-D, AVE),
            4 and 4 (UCF101).
        target_weight, others_weight: published 5 and 1 (AVE, UCF101), 3 and 1 (CREMA-D). A row's
            factor is target_weight - others_weight * q_y: of a large target_weight little but a
            constant is left, which Adam cancels.
        agreement: weight of `agreement_loss` with the modality before, from the second stage on.
            Published .5, but with both sides detached, which has no gradient: 0 trains the same.
    """

    published = "ICML 2024"

    def __init__(
        self,
        model: MultimodalModel,
        stage_epochs: int = 1,
        correction_epochs: int = 1,
        target_weight: float = 5.0,
        others_weight: float = 1.0,
        agreement: float = 0.0,
    ) -> None:
        super().__init__(model)
        self.stage_epochs, self.correction_epochs = stage_epochs, correction_epochs
        self.target_weight, self.others_weight = target_weight, others_weight
        self.agreement = agreement
        # A buffer, so that it is kept with the weights of the best epoch.
        self.members: Tensor
        self.register_buffer("members", torch.tensor(1))
        self._turn, self._correcting = 0, False

    def epoch_start(self, epoch: int, train: Batch) -> None:
        stage, within = divmod(epoch, self.stage_epochs + self.correction_epochs)
        self._turn = stage % self.model.num_modalities
        self._correcting = within >= self.stage_epochs
        self.members.fill_(min(stage + 1, self.model.num_modalities))

    def logits(self, inputs: Sequence[Tensor], modality: int) -> Tensor:
        """Those of one modality's own head, [N, C]."""
        latents: Tensor = self.model.encoders[modality](inputs[modality])
        found: Tensor = self.model.heads[modality](latents)
        return found

    def loss(self, batch: Batch) -> Tensor:
        members = range(int(self.members))
        if self._correcting:
            logits = torch.stack([self.logits(batch.inputs, m) for m in members]).sum(0)
            return F.cross_entropy(logits, batch.labels)
        own = self.logits(batch.inputs, self._turn)
        with torch.no_grad():
            others = {m: self.logits(batch.inputs, m) for m in members if m != self._turn}
        joint = torch.stack([torch.zeros_like(own), *others.values()]).sum(0)
        weights = self.target_weight, self.others_weight
        loss = boosting_losses(own, joint, batch.labels, *weights).mean()
        if self.agreement and others:
            previous = others[(self._turn - 1) % self.model.num_modalities]
            loss = loss + self.agreement * agreement_loss(own, previous)
        return loss

    def predict_latents(self, latents: Sequence[Tensor]) -> Tensor:
        return torch.stack(self.model.own(latents)[: int(self.members)]).sum(0).softmax(1)
