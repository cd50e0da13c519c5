"""Each modality on its own, and their ensemble (UME, arXiv 2305.01233)."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import Batch, MultimodalModel
from ..strategy import Strategy, accuracy, evaluating


class Unimodal(Strategy):
    """CE(o_m) of each modality, which share no parameter; predicts the mean of the probabilities.

    Training them side by side is training them one by one, as the optimizer keeps parameters apart.
    `model` is as of the last step. Each modality chooses its own best validation epoch, and nothing
    else is chosen: `best_model` has those encoders and heads, `chosen` predicts with them.

    Args:
        model: what is trained; its fusion is not used.
        average: of the ``"probabilities"``, or of the ``"logits"``, which is the normalized product
            of the probabilities' M-th roots: a modality that rules a class out is heard.
    """

    published = "arXiv 2305.01233"

    def __init__(
        self,
        model: MultimodalModel,
        average: Literal["probabilities", "logits"] = "probabilities",
    ) -> None:
        super().__init__(model)
        if average not in ("probabilities", "logits"):
            raise ValueError(f"average has to be 'probabilities' or 'logits', not {average!r}")
        self.average = average
        self.best = [-1.0] * model.num_modalities  # accuracy on validation, one a modality
        self.best_epochs = [-1] * model.num_modalities
        self.best_model = copy.deepcopy(model).requires_grad_(False)

    def loss(self, batch: Batch) -> Tensor:
        own = self.model.own(self.model.encode(batch.inputs))
        return torch.stack([F.cross_entropy(o, batch.labels) for o in own]).sum()

    def epoch_end(self, epoch: int, train: Batch, validation: Batch) -> None:
        with evaluating(self):
            own = self.model.own(self.model.encode(validation.inputs))
        for m, logits in enumerate(own):
            found = accuracy(logits, validation.labels)
            if found > self.best[m]:
                self.best[m], self.best_epochs[m] = found, epoch
                for part in ("encoders", "heads"):
                    state: dict[str, Any] = getattr(self.model, part)[m].state_dict()
                    getattr(self.best_model, part)[m].load_state_dict(state)

    def chosen(self) -> tuple[Strategy, int]:
        found = copy.deepcopy(self)
        found.model.load_state_dict(self.best_model.state_dict())
        return found, max(self.best_epochs)

    def predict_latents(self, latents: Sequence[Tensor]) -> Tensor:
        own = torch.stack(self.model.own(latents))
        if self.average == "logits":
            return own.mean(0).softmax(1)
        return own.softmax(2).mean(0)
