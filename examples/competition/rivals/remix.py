"""Data Remixing: each row trains only the modality that is least sure of it.

Ma, Chen, Deng, Improving Multimodal Learning Balance and Sufficiency through Data Remixing,
ICML 2025.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import Batch, MultimodalModel
from ..strategy import evaluating
from .multi_loss import MultiLoss


def certainties(logits: Tensor) -> Tensor:
    """[N, C] -> [N]: KL(p || uniform) in bits, sum over c of p_c log2(C p_c), p at least 1e-9.

    The published code's uniform has 6 classes whatever C is.
    """
    p = logits.softmax(1).clamp(min=1e-9)
    return (p * (p * logits.shape[1]).log2()).sum(1)


def least_certain(of_each: Tensor) -> Tensor:
    """Certainties [M, N] -> the modality [N] with the smallest; the last of those that tie."""
    return len(of_each) - 1 - of_each.flip(0).argmin(0)


class Remix(MultiLoss):
    """Warm-up: CE(f) + .5 sum of CE(o_m). Then CE(f) + weight * CE(o_m), all other latents 0.

    After the warm-up the rows are shared out at the start of every epoch, by the certainty of the
    own heads in eval mode; a batch has rows of one modality. An epoch has every row once; a
    modality's rows are cut into batches of nearly the same size, and one that has a single row
    leaves it out. The encoders of the latents that are 0 do not run. Predicts with all modalities.

    Args:
        model: what is trained.
        warmup: epochs of it; published 10.
        warmup_weight: of the unimodal losses in it; published .5.
        weight: gamma, of the unimodal loss afterwards; published 1.
        order: modalities in the order in which their rows come, which matters, as the last one is
            the freshest (published: video first); None shuffles the batches of all.
    """

    published = "ICML 2025"

    def __init__(
        self,
        model: MultimodalModel,
        warmup: int = 10,
        warmup_weight: float = 0.5,
        weight: float = 1.0,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model, warmup_weight)
        self.warmup, self.weight, self.order = warmup, weight, order
        self._assignment: Tensor | None = None  # [rows of the training set], None in the warm-up
        self._kept: int | None = None  # the modality of the batch at hand

    def first_epoch(self) -> int:
        return self.warmup

    def epoch_start(self, epoch: int, train: Batch) -> None:
        self._assignment = self.assign(train) if epoch >= self.warmup else None

    def assign(self, train: Batch) -> Tensor:
        """The modality that each row is to train: [N]."""
        with evaluating(self):
            own = self.model.own(self.encode(train.inputs))
            return least_certain(torch.stack([certainties(o) for o in own]))

    def batches(self, train: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
        if self._assignment is None:
            self._kept = None
            yield from super().batches(train, size, generator)
            return
        found: list[tuple[int, Tensor]] = []
        for m in range(self.model.num_modalities) if self.order is None else self.order:
            rows = (self._assignment == m).nonzero()[:, 0]
            rows = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
            if len(rows) > 1:
                found += [(m, index) for index in rows.tensor_split(-(-len(rows) // size))]
        if self.order is None:
            order = torch.randperm(len(found), generator=generator).tolist()
            found = [found[i] for i in order]
        for m, index in found:
            self._kept = m
            yield train.rows(index)

    def loss(self, batch: Batch) -> Tensor:
        m = self._kept
        if m is None:
            return super().loss(batch)
        z = self.model.encoders[m](batch.inputs[m])
        latents = [z.new_zeros(len(z), width) for width in self.model.widths]
        latents[m] = z
        own = F.cross_entropy(self.model.heads[m](z), batch.labels)
        return F.cross_entropy(self.model.fuse(latents), batch.labels) + self.weight * own
