"""ARM: raise the latents of the modality that contributes less, before the fusion.

Gao, Cao, Zhu, Wang, Hu, Asymmetric Reinforcing against Multi-modal Representation Bias, AAAI 2025.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import Batch, MultimodalModel
from ..strategy import Strategy, mean_of_others, true_class_scores


def binned(x: Tensor, bins: int) -> Tensor:
    """Numbers of any shape -> the bin of each, [n], 0..bins-1: of one width between extremes."""
    x = x.detach().flatten()
    low, high = x.min(), x.max()
    width = torch.where(high > low, high - low, torch.ones_like(high))
    return ((x - low) / width * bins).long().clamp(max=bins - 1)


def entropy(codes: Tensor) -> Tensor:
    """Integers [n] >= 0 -> entropy of their frequencies, nats."""
    return torch.special.entr(torch.bincount(codes).double() / len(codes)).sum()


def mutual_information(x: Tensor, y: Tensor, bins: int = 30) -> Tensor:
    """NMI: 2 I(x; y) / (H(x) + H(y)) of two tensors of n numbers; 0 if neither has any entropy."""
    of_x, of_y = binned(x, bins), binned(y, bins)
    entropies = entropy(of_x) + entropy(of_y)
    return 2 * (entropies - entropy(of_x * bins + of_y)) / entropies.clamp(min=1e-12)


def conditional_information(x: Tensor, y: Tensor, given: Sequence[Tensor], bins: int = 2) -> Tensor:
    """NCMI: I(x; y | z) / (H(x | z) + H(y | z)), z the cells of all that is given.

    The published code sums the conditional entropies over z without the weights p(z).
    """
    of_x, of_y = binned(x, bins), binned(y, bins)
    cells = torch.zeros_like(of_x)
    for z in given:
        cells = cells * bins + binned(z, bins)
    known = entropy(cells)
    of_x_given, of_y_given = (entropy(cells * bins + of) - known for of in (of_x, of_y))
    both = entropy((cells * bins + of_x) * bins + of_y) - known
    entropies = of_x_given + of_y_given
    return (entropies - both) / entropies.clamp(min=1e-12)


def contributions(fused_score: Tensor, scores: Tensor, nmi: Tensor, ncmi: Tensor) -> Tensor:
    """[M] of [M]: P_f * NMI_m + P_m * (NMI_m - NCMI_m), P the true class's mean probabilities."""
    return fused_score * nmi + scores * (nmi - ncmi)


def factors(of_each: Tensor, limit: float) -> Tensor:
    """Contributions [M] -> factors on the latents [M]: the others' mean over the own.

    Kept within 1 / limit and limit. Contributions may be negative, and count as all but 0 then.
    """
    of_each = of_each.clamp(min=1e-8)
    return (mean_of_others(of_each) / of_each).clamp(1 / limit, limit)


class ARM(Strategy):
    """CE(classifier(fuse(factor_1 z_1, ..., factor_M z_M))), `factors` of the `contributions`.

    `fuse` is linear from all latents to one of their width, z_f = fuse(z_1, ..., z_M); one linear
    classifier serves z_f and, for the scores P_m, every z_m. Information is that of histograms of
    all N * D numbers: NMI_m with z_f in 30 bins, NCMI_m with z_f given the others in 2.

    Scores need labels, so that predictions take the running mean of the factors in training; the
    published code takes the factors of the test batch, and with them its labels. There z_f comes
    from a `fuse` of its own, which never trains. Factors are unbounded there.

    Args:
        model: what is trained; latents have to be of one width, fusion and heads are not used.
        limit: of the factors; this code's.
        swapped_scores: P_1 is modality 2's score and the other way round, as in the published code.
        momentum: of the running mean.
    """

    published = "AAAI 2025"

    def __init__(
        self,
        model: MultimodalModel,
        limit: float = 5.0,
        swapped_scores: bool = False,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(model)
        if len(set(model.widths)) > 1:
            raise ValueError(f"one classifier needs latents of one width, not {model.widths}")
        self.limit, self.swapped_scores, self.momentum = limit, swapped_scores, momentum
        self.fuse = nn.Linear(sum(model.widths), model.widths[0])
        self.classifier = nn.Linear(model.widths[0], model.classes)
        self.running: Tensor
        self.register_buffer("running", torch.ones(model.num_modalities))

    def logits(self, latents: Sequence[Tensor], scale: Tensor) -> Tensor:
        """[N, C], of latents times their factors [M]."""
        scaled = [z * factor for z, factor in zip(latents, scale.to(latents[0]), strict=True)]
        found: Tensor = self.classifier(self.fuse(torch.cat(scaled, dim=1)))
        return found

    @torch.no_grad()
    def batch_factors(self, latents: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Those of a batch, [M]."""
        fused = self.fuse(torch.cat(tuple(latents), dim=1))
        logits = [self.classifier(z) for z in (fused, *latents)]
        fused_score, *own = true_class_scores(logits, labels) / len(labels)
        scores = torch.stack(own[::-1] if self.swapped_scores else own)
        nmi, ncmi = [], []
        for m, z in enumerate(latents):
            others = [*latents[:m], *latents[m + 1 :]]
            nmi.append(mutual_information(z, fused))
            ncmi.append(conditional_information(z, fused, others))
        of_each = contributions(fused_score, scores, torch.stack(nmi), torch.stack(ncmi))
        return factors(of_each, self.limit)

    def loss(self, batch: Batch) -> Tensor:
        latents = self.model.encode(batch.inputs)
        found = self.batch_factors(latents, batch.labels)
        if self.training:
            self.running.lerp_(found.to(self.running), self.momentum)
        return F.cross_entropy(self.logits(latents, found), batch.labels)

    def predict_latents(self, latents: Sequence[Tensor]) -> Tensor:
        return self.logits(latents, self.running).softmax(1)
