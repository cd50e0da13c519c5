"""Three rows, three classes, two modalities, whose numbers were computed by hand in float64."""

import torch
from torch import Tensor, nn

from examples.competition.model import Batch, MultimodalModel

LABELS = torch.tensor([0, 1, 2])
OWN = (  # logits of each modality
    torch.tensor([[2, 0, 0], [0, 1, 0], [0.5, 0, 1]], dtype=torch.float64),
    torch.tensor([[0.5, 0.2, 0], [0, 0, 0.3], [1, 0, 0]], dtype=torch.float64),
)
FUSED = OWN[0] + OWN[1]


def toy_model() -> MultimodalModel:
    """Its latents are its inputs, each modality's logits are its latents: own heads and slices."""
    model = MultimodalModel([nn.Identity(), nn.Identity()], (3, 3), 3).double()
    with torch.no_grad():
        model.fusion.weight.copy_(torch.eye(3).repeat(1, 2))
        model.fusion.bias.zero_()
        for head in model.heads:
            head.weight.copy_(torch.eye(3))
            head.bias.zero_()
    return model


def toy_batch() -> Batch:
    return Batch(OWN, LABELS)


def trained_model(seed: int = 0) -> MultimodalModel:
    """One with encoders, for gradients: inputs of width 4 and 5, latents of width 3."""
    torch.manual_seed(seed)
    return MultimodalModel([nn.Linear(4, 3), nn.Linear(5, 3)], (3, 3), 3)


def random_batch(rows: int = 12, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    inputs = tuple(torch.randn(rows, width, generator=generator) for width in (4, 5))
    return Batch(inputs, torch.arange(rows) % 3)


def tensor(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)
