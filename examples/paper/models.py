"""One modality with its head, and all of them with a fusion and the objective."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mcr_fast
from paper.runs import Run, encoder

Method = Literal["mcr", "multi-loss", "joint"]
METHODS: tuple[Method, ...] = ("mcr", "multi-loss", "joint")
FUSED = "fused"


class Unimodal(nn.Module):
    """An encoder and a linear head, trained by the task's loss alone."""

    def __init__(self, run: Run, modality: str, width: int) -> None:
        super().__init__()
        self.modality, self.regression = modality, run.regression
        self.encoder = encoder(run, width)
        latents = run.recipe.latent_dims[run.modalities.index(modality)]
        self.head = nn.Linear(latents, run.recipe.num_classes)

    def forward(self, inputs: Sequence[Tensor], labels: Tensor) -> Tensor:  # -> []
        logits = self.head(self.encoder(inputs[0])).float()
        if self.regression:
            return F.l1_loss(logits.flatten(), labels)
        return F.cross_entropy(logits, labels)

    def predict(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:  # each [N, C]
        return {self.modality: self.head(self.encoder(inputs[0]))}


class Multimodal(nn.Module):
    """Encoders, a head for each, a linear fusion, and Algorithm 1 as the loss.

    The fusion is one projection a modality without bias and one bias, as in the published code:
    the additive fusion that `MCRLoss` computes in one kernel.
    """

    def __init__(self, run: Run, widths: Sequence[int], method: Method) -> None:
        super().__init__()
        recipe = run.recipe
        self.modalities = run.modalities
        self.encoders = nn.ModuleList([encoder(run, width) for width in widths])
        self.heads = nn.ModuleList([nn.Linear(d, recipe.num_classes) for d in recipe.latent_dims])
        projections = [nn.Linear(d, recipe.num_classes, bias=False) for d in recipe.latent_dims]
        bias = nn.Parameter(torch.zeros(recipe.num_classes))
        self.fusion = mcr_fast.AdditiveFusion(projections, bias)
        self.objective = objective(run, method)
        self.heads_train = any(self.objective.unimodal_weight)

    def start_from(self, modality: str, state: Mapping[str, Tensor]) -> None:
        """A modality's encoder and head as `Unimodal` has learned them."""
        number = self.modalities.index(modality)
        for part, module in (("encoder.", self.encoders[number]), ("head.", self.heads[number])):
            of_part = {k.removeprefix(part): v for k, v in state.items() if k.startswith(part)}
            module.load_state_dict(of_part)

    def latents(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [encode(x) for encode, x in zip(self.encoders, inputs, strict=True)]

    def forward(self, inputs: Sequence[Tensor], labels: Tensor) -> Tensor:  # -> []
        latents = self.latents(inputs)
        out = self.objective(latents, labels, fusion=self.fusion, unimodal_heads=self.heads)
        return out.loss

    def predict(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:  # each [N, C]
        """Logits of the fusion, and of the heads if they are trained."""
        latents = self.latents(inputs)
        logits = {FUSED: self.fusion(latents)}
        if self.heads_train:
            for name, head, x in zip(self.modalities, self.heads, latents, strict=True):
                logits[name] = head(x)
        return logits


def objective(run: Run, method: Method) -> mcr_fast.MCRObjective:
    """The published one, or the same without its regularizer, or without its unimodal losses too.

    Multi-loss training has the unimodal weight that MCR has here, so that they differ by the
    regularizer alone.
    """
    if method == "mcr":
        return run.recipe.objective()
    off = {"mipd_weight": 0.0, "contrastive_weight": 0.0, "ceb_weight": 0.0}
    if method == "multi-loss":
        return run.recipe.objective(**off)
    return run.recipe.objective(**off, unimodal_weight=0.0)
