"""MLA: one head in common, a step for each modality in turn, predictions weighted by certainty.

Zhang, Yoon, Bansal, Yao, Multimodal Representation Learning by Alternating Unimodal Adaptation,
CVPR 2024.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import Batch, MultimodalModel
from ..strategy import Strategy


def next_projection(projection: Tensor, mean: Tensor, alpha: float) -> Tensor:
    """P [D, D] without the direction of the mean latent r [D], of Frobenius norm 1.

    P <- P - k k^T / (alpha + r . k) with k = P r.
    """
    k = projection @ mean
    projection = projection - torch.outer(k, k) / (alpha + mean @ k)
    return projection / projection.norm()


def gates(logits: Sequence[Tensor], rows: bool = True) -> Tensor:
    """M of [N, C] -> weights [M, N] that add up to 1: proportional to exp(max_j H_j - H_m).

    H_m is the entropy of softmax(o_m), of each row or, if not `rows`, its sum over them.
    """
    p = torch.stack(list(logits)).softmax(2)
    entropies = torch.special.entr(p).sum(2)
    if not rows:
        entropies = entropies.sum(1, keepdim=True).expand_as(entropies)
    return (-entropies).softmax(0)


class MLA(Strategy):
    """For m = 1..M a step on CE(z_m W^T + b), with W, b in common and its gradient projected.

    From the second update on W's gradient G becomes G P^T, P being `next_projection` of the mean
    row of z_m and alpha = .1^(batch / batches of the epoch + 1). The published code divides by the
    matrix alpha + k r, and looks for the head under a name that it has only if it is wrapped.

    Args:
        model: what is trained; its first head is the one in common, so that all latents have to be
            of one width, and its fusion is not used.
        project: False for plain alternation, which is what the published code does as it is found.
        row_gates: False for one gate for all rows that are predicted together, of the sum of their
            entropies, as in the published code (whose softmax runs over the rows, too): with many
            rows one modality takes all.
    """

    published = "CVPR 2024"

    def __init__(
        self, model: MultimodalModel, project: bool = True, row_gates: bool = True
    ) -> None:
        super().__init__(model)
        if len(set(model.widths)) > 1:
            raise ValueError(f"one head for all needs latents of one width, not {model.widths}")
        self.project, self.row_gates = project, row_gates
        self.projection: Tensor
        self.register_buffer("projection", torch.eye(model.widths[0]).to(self.head.weight))
        self._updates = 0
        self._progress = 0.0  # share of the epoch's batches that are done

    @property
    def head(self) -> nn.Linear:
        """The one in common."""
        found = self.model.heads[0]
        assert isinstance(found, nn.Linear)
        return found

    def batches(self, train: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
        for index, batch in enumerate(super().batches(train, size, generator)):
            self._progress = index / (len(train) // size)
            yield batch

    def step(self, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
        for encoder, x in zip(self.model.encoders, batch.inputs, strict=True):
            optimizer.zero_grad()
            z = encoder(x)
            self.backward(F.cross_entropy(self.head(z), batch.labels))
            if self.project and self._updates > 0:
                alpha = 0.1 ** (self._progress + 1)
                self.projection = next_projection(self.projection, z.detach().mean(0), alpha)
                grad = self.head.weight.grad
                assert grad is not None
                grad.copy_(grad @ self.projection.T)
            self._updates += 1
            self.update(optimizer)

    def predict_latents(self, latents: Sequence[Tensor]) -> Tensor:
        logits = [self.head(z) for z in latents]
        weights = gates(logits, self.row_gates)
        return (weights[:, :, None] * torch.stack(logits)).sum(0).softmax(1)
