"""SFC: rows that one modality tells on its own count less in the fused loss.

Li, Wen, Lou, Ji, Lu, Han, Zhang and Sun, The Devil Is in the Details: Tackling Unimodal Spurious
Correlations for Generalizable Multimodal Reward Models, ICML 2025.
"""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import Batch, MultimodalModel
from ..strategy import Strategy


def row_weights(
    fused: Tensor, shortcuts: Tensor, combination: Literal["product", "least"] = "product"
) -> Tensor:
    """Losses of the rows, fused [N] and of K shortcut models [K, N] -> weights [N], detached.

    shortcut / (fused + shortcut): how much of the failure is the shortcut's; 1/2 if neither fails.
    Those of several shortcuts are multiplied, or the least one counts.
    """
    fused, shortcuts = fused.detach(), shortcuts.detach()
    total = fused + shortcuts
    each = torch.where(total > 0, shortcuts / total, torch.full_like(total, 0.5))
    return each.prod(0) if combination == "product" else each.amin(0)


class SFC(Strategy):
    """mean of w_i * ce_i(f) + sum over shortcuts m of mean ce_i(o_m), w_i of `row_weights`.

    Published for reward models with Bradley-Terry losses, where the text is the shortcut and has a
    model of its own. The cross-entropy, own heads and several shortcuts at once are our transfer.
    The shortcut models give no gradient to what is fused. The published form is one named shortcut
    with an encoder of its own: `SFC(model, shortcuts=[m], own_encoder=True)`.

    Args:
        model: what is trained.
        shortcuts: the modalities that are ones; None for all, which treats them alike.
        combination: of the weights of several shortcuts, ``"product"`` or ``"least"``.
        own_encoder: the shortcut model has an encoder of its own, as published, which starts from
            the same weights; else a head on the detached latents, which costs next to nothing.
    """

    published = "ICML 2025"

    def __init__(
        self,
        model: MultimodalModel,
        shortcuts: Sequence[int] | None = None,
        combination: Literal["product", "least"] = "product",
        own_encoder: bool = False,
    ) -> None:
        super().__init__(model)
        everything = range(model.num_modalities)
        self.shortcuts = tuple(everything if shortcuts is None else shortcuts)
        if not self.shortcuts or not set(self.shortcuts) <= set(everything):
            raise ValueError(f"no shortcuts among {model.num_modalities} modalities: {shortcuts}")
        self.combination: Literal["product", "least"] = combination
        copies = [copy.deepcopy(model.encoders[m]) for m in self.shortcuts] if own_encoder else []
        self.encoders = nn.ModuleList(copies)

    def shortcut_logits(self, batch: Batch, latents: Sequence[Tensor]) -> list[Tensor]:
        """Logits [N, C] of each shortcut model."""
        found = []
        for i, m in enumerate(self.shortcuts):
            z = self.encoders[i](batch.inputs[m]) if len(self.encoders) else latents[m].detach()
            found.append(self.model.heads[m](z))
        return found

    def loss(self, batch: Batch) -> Tensor:
        latents = self.model.encode(batch.inputs)
        fused = F.cross_entropy(self.model.fuse(latents), batch.labels, reduction="none")
        shortcuts = torch.stack(
            [
                F.cross_entropy(o, batch.labels, reduction="none")
                for o in self.shortcut_logits(batch, latents)
            ]
        )
        weights = row_weights(fused, shortcuts, self.combination)
        return (weights * fused).mean() + shortcuts.mean(1).sum()
