"""AGM: what each modality adds to the logits, measured by inputs of zeros, gets its own gradient.

Li, Li, Hu, Lei, Li and Zhou, Boosting Multi-modal Model Performance with Adaptive Gradient
Modulation, ICCV 2023.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import Batch, MultimodalModel
from ..strategy import Strategy, mean_of_others


def shapley_split(fused: Mapping[frozenset[int], Tensor], modalities: int) -> list[Tensor]:
    """Logits [N, C] for each set of modalities seen -> M of [N, C], which add up to those of all.

    phi_m = f_0 / M + sum over S without m of |S|! (M - |S| - 1)! / M! (f_{S + m} - f_S). The logits
    f_0 of no modality cancel, so that `fused` has the 2^M - 1 others. With two modalities phi_1 is
    (f + f_1 - f_2) / 2, f_m of modality m alone.
    """
    parts = []
    for m in range(modalities):
        part = fused[frozenset({m})] / modalities
        for seen, logits in fused.items():
            if m not in seen:
                weight = 1 / (modalities * comb(modalities - 1, len(seen)))
                part = part + weight * (fused[seen | {m}] - logits)
        parts.append(part)
    return parts


def losses(parts: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy of each part, [M], detached; no row's probability counts as less than 1e-8."""
    rows = torch.arange(len(labels), device=labels.device)
    of_label = [part.detach().softmax(1)[rows, labels] for part in parts]
    return torch.stack([-p.clamp_min(1e-8).log().mean() for p in of_label])


def lead(losses: Tensor) -> Tensor:
    """[M] -> r [M]: exp(mean of the others' losses - own), above 1 for a modality that is ahead."""
    return torch.exp(mean_of_others(losses) - losses)


def coefficients(losses: Tensor, running: Tensor, alpha: float, cap: float) -> Tensor:
    """Losses of this step [M] and their means over the earlier ones [M] -> factors [M].

    exp(alpha * min(tau - r, cap)), r the lead in this step and tau that of the means.
    """
    return torch.exp(alpha * (lead(running) - lead(losses)).clamp(max=cap))


class AGM(Strategy):
    """CE(f), f = sum of phi_m; the gradient that comes back to phi_m is multiplied by k_m.

    All parameters see it, those of the fusion included. phi_m are Shapley values over inputs of
    which some are zeros, published for two modalities. Each encoder runs twice in a step, the
    fusion 2^M - 1 times, all in training mode as in the authors' code: batch norm counts zero
    inputs, and with dropout phi is noisy. BalanceBenchmark has r the wrong way round, and scales
    gradients of whole encoders.

    Args:
        model: what is trained.
        alpha: how much; published 3 (CREMA-D, AVE), 2 (UCF), .1 (BalanceBenchmark).
        cap: of the exponent before alpha; published 10 with two modalities, 7 (BalanceBenchmark).
    """

    published = "ICCV 2023"

    def __init__(self, model: MultimodalModel, alpha: float = 1.0, cap: float = 10.0) -> None:
        super().__init__(model)
        self.alpha, self.cap = alpha, cap
        self.running = torch.zeros(model.num_modalities)  # mean of the losses of earlier steps
        self.steps = 0

    def parts(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """phi_m [N, C] of each modality."""
        seen = self.model.encode(inputs)
        unseen = self.model.encode([torch.zeros_like(x) for x in inputs])
        modalities = range(len(inputs))
        fused = {}
        for size in range(1, len(inputs) + 1):
            for chosen in combinations(modalities, size):
                latents = [seen[m] if m in chosen else unseen[m] for m in modalities]
                fused[frozenset(chosen)] = self.model.fuse(latents)
        return shapley_split(fused, len(inputs))

    def loss(self, batch: Batch) -> Tensor:
        parts = self.parts(batch.inputs)
        found = losses(parts, batch.labels)
        self.running = self.running.to(found)
        factors = coefficients(found, self.running, self.alpha, self.cap)
        self.running = (self.running * self.steps + found) / (self.steps + 1)
        self.steps += 1
        for part, factor in zip(parts, factors, strict=True):
            part.register_hook(factor.mul)
        return F.cross_entropy(torch.stack(parts).sum(0), batch.labels)
