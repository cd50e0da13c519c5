"""Each modality on its own, and their ensemble (UME, arXiv 2305.01233)."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import Batch, MultimodalModel
from ..strategy import Strategy, accuracy


class Unimodal(Strategy):
    """CE(o_m) of each modality, which share no parameter; predicts the mean of the probabilities.

    Training them side by side is training them one by one, as the optimizer keeps parameters apart.
    Each modality predicts as of its own best validation epoch.

    Args:
        model: what is trained; its fusion is not used.
    """

    published = "arXiv 2305.01233"

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__(model)
        self.best = [0.0] * model.num_modalities
        self.best_model = copy.deepcopy(model).requires_grad_(False)

    def loss(self, batch: Batch) -> Tensor:
        own = self.model.own(self.model.encode(batch.inputs))
        return torch.stack([F.cross_entropy(o, batch.labels) for o in own]).sum()

    @torch.no_grad()
    def epoch_end(self, epoch: int, train: Batch, validation: Batch) -> None:
        self.eval()
        own = self.model.own(self.model.encode(validation.inputs))
        self.train()
        for m, logits in enumerate(own):
            found = accuracy(logits, validation.labels)
            if found > self.best[m]:
                self.best[m] = found
                for part in ("encoders", "heads"):
                    state: dict[str, Any] = getattr(self.model, part)[m].state_dict()
                    getattr(self.best_model, part)[m].load_state_dict(state)

    def encode(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return self.best_model.encode(inputs)

    def predict_latents(self, latents: Sequence[Tensor]) -> Tensor:
        return torch.stack([o.softmax(1) for o in self.best_model.own(latents)]).mean(0)
