"""OMIB: an information bottleneck of each modality, weighted by what the fusion does not know yet.

Wu, Shao, Wang, Sun, Learning Optimal Multimodal Information Bottleneck Representations, ICML 2025.
Its code is not public; what the paper leaves open is said where it is settled.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import Batch, MultimodalModel
from ..strategy import Strategy


def divergences(logits: Tensor, others: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(others)) of rows: [N]."""
    log_p, log_q = logits.log_softmax(1), others.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def relevances(
    own: Sequence[Tensor], fused: Tensor, mean_of_ratios: bool = False, fused_first: bool = False
) -> Tensor:
    """Logits of the task heads and of the fusion, [N, C] each -> r [M], detached, r_1 = 1.

    r_m = 1 - tanh(ln R_m), R_m the ratio of modality m's mean KL(p_m || p_f) to modality 1's: small
    where m still knows what the fusion does not. Two that are 0 have the ratio 1. The options are
    those of `OMIB`.
    """
    pairs = [(fused, o) if fused_first else (o, fused) for o in own]
    of_rows = torch.stack([divergences(p.detach(), q.detach()) for p, q in pairs])
    of_rows = of_rows if mean_of_ratios else of_rows.mean(1, keepdim=True)  # [M, N or 1]
    of_rows = of_rows.clamp(min=1e-12)
    return 1 - (of_rows / of_rows[0]).mean(1).log().tanh()


def gaussian_divergences(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, I)), [N, D] -> 0-d: sum over D, mean over N."""
    terms = 1 + log_variance - mean.square() - log_variance.exp()
    return -0.5 * terms.sum(1).mean()


def largest_beta(relevance: float, entropies: tuple[float, float], mutual: float) -> float:
    """The paper's bound on beta for two modalities: 1 / ((1 + r)(H(v_1) + H(v_2) - I(v_1; v_2))).

    Estimates of entropies and information, nats, are the caller's (the paper's are MINE's).
    """
    return 1 / ((1 + relevance) * (sum(entropies) - mutual))


class OMIB(Strategy):
    """CE(f) + sum of CE(o_m) + beta * sum of r_m * KL_m, r_m of `relevances`.

    Of each latent z_m a Gaussian (mu_m, logvar_m) is linear; zeta_m = mu_m + noise * exp(logvar_m /
    2), in eval mode mu_m; xi is the mean of the tokens of a transformer layer over zeta_1..zeta_M;
    f is linear in xi, o_m in [z_m, xi]; KL_m = `gaussian_divergences`. During the warm-up o_m has
    Gaussian noise in place of xi, and only the CE(o_m) are trained. The layer, prediction from mu_m
    and r_m relative to modality 1 for M > 2 are this code's choices.

    Args:
        model: what is trained; its fusion and its heads are not used.
        width: of xi; by default that of the first latent.
        warmup: epochs of it.
        beta: a reimplementation's constant is 1e-3; the paper's lies below `largest_beta`.
        mean_of_ratios: the mean of the rows' ratios, as the paper's formula reads, instead of the
            ratio of the means, which a row of a small divergence does not run away with.
        fused_first: KL(p_f || p_m), the reverse of the paper's, as in a reimplementation.
    """

    published = "ICML 2025"

    def __init__(
        self,
        model: MultimodalModel,
        width: int | None = None,
        warmup: int = 5,
        beta: float = 1e-3,
        mean_of_ratios: bool = False,
        fused_first: bool = False,
    ) -> None:
        super().__init__(model)
        width = model.widths[0] if width is None else width
        self.width, self.warmup, self.beta = width, warmup, beta
        self.mean_of_ratios, self.fused_first = mean_of_ratios, fused_first
        self.gaussians = nn.ModuleList([nn.Linear(d, 2 * width) for d in model.widths])
        self.attention = nn.TransformerEncoderLayer(
            width, nhead=1, dim_feedforward=2 * width, dropout=0.0, batch_first=True
        )
        self.head = nn.Linear(width, model.classes)
        self.task_heads = nn.ModuleList([nn.Linear(d + width, model.classes) for d in model.widths])
        self._warm = False

    def first_epoch(self) -> int:
        return self.warmup

    def epoch_start(self, epoch: int, train: Batch) -> None:
        self._warm = epoch < self.warmup

    def bottleneck(self, latents: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Latents [N, D_m] -> xi [N, width], and KL_m of each modality, 0-d."""
        tokens, kl = [], []
        for z, gaussian in zip(latents, self.gaussians, strict=True):
            mean, log_variance = gaussian(z).chunk(2, dim=1)
            noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
            tokens.append(mean + noise * (log_variance / 2).exp())
            kl.append(gaussian_divergences(mean, log_variance))
        return self.attention(torch.stack(tokens, dim=1)).mean(1), kl

    def own(self, latents: Sequence[Tensor], known: Tensor) -> list[Tensor]:
        """Logits [N, C] of the task heads, of the latents and what else is known [N, width]."""
        return [
            head(torch.cat((z, known), dim=1))
            for head, z in zip(self.task_heads, latents, strict=True)
        ]

    def loss(self, batch: Batch) -> Tensor:
        latents = self.model.encode(batch.inputs)
        if self._warm:
            own = self.own(latents, torch.randn_like(latents[0][:, :1].expand(-1, self.width)))
            return torch.stack([F.cross_entropy(o, batch.labels) for o in own]).sum()
        xi, kl = self.bottleneck(latents)
        fused, own = self.head(xi), self.own(latents, xi)
        weights = relevances(own, fused, self.mean_of_ratios, self.fused_first)
        tasks = [F.cross_entropy(logits, batch.labels) for logits in (fused, *own)]
        return torch.stack(tasks).sum() + self.beta * (weights * torch.stack(kl)).sum()

    def predict_latents(self, latents: Sequence[Tensor]) -> Tensor:
        found: Tensor = self.head(self.bottleneck(latents)[0])
        return found.softmax(1)
