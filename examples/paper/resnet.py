"""ResNet-18 by torch alone, its parameters named as torchvision's, so that its weights load."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 512  # of the latents


class BasicBlock(nn.Module):
    """Two convolutions of 3 x 3 and what goes around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:  # [N, inputs, h, w] -> [N, outputs, h', w']
        around = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + around)


class ResNet18(nn.Module):
    """Latents [N, 512] of images [N, in_channels, h, w], or of the mean of frames.

    Frames [N, T, in_channels, h, w] are each an image to the network, batch norm included, and
    the latents are the mean over them, as in the published code. Weights start as there:
    convolutions normal for ReLU by their fan-out, the scales of batch norm normal around 1 by 0.02.

    Args:
        in_channels: 1 for a spectrogram, 3 for an image.
        num_classes: None: latents; otherwise logits [N, num_classes] of one more linear layer.
    """

    def __init__(self, in_channels: int = 3, num_classes: int | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._layer(64, 64, stride=1)
        self.layer2 = self._layer(64, 128, stride=2)
        self.layer3 = self._layer(128, 256, stride=2)
        self.layer4 = self._layer(256, WIDTH, stride=2)
        self.fc = None if num_classes is None else nn.Linear(WIDTH, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, mean=1, std=0.02)

    @staticmethod
    def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:  # [N, C, h, w] or [N, T, C, h, w] -> [N, 512]
        rows = x.shape[0]
        if x.ndim == 5:
            x = x.flatten(0, 1)
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = x.mean((2, 3)).view(rows, -1, WIDTH).mean(1)
        return x if self.fc is None else self.fc(x)

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Weights of torchvision's ResNet-18; those of its last layer are left out.

        The published runs start from random weights. With one channel instead of three the first
        layer gets the sum over the channels, which is what a grey image would see.
        """
        state = {name: value for name, value in state.items() if not name.startswith("fc.")}
        first = state.get("conv1.weight")
        if first is not None and first.shape[1] == 3 and self.conv1.in_channels == 1:
            state["conv1.weight"] = first.sum(1, keepdim=True)
        kept = {} if self.fc is None else {f"fc.{k}": v for k, v in self.fc.state_dict().items()}
        self.load_state_dict({**state, **kept})


class SequenceTransformer(nn.Module):
    """Latents [N, dim] of a sequence of features [N, steps, width].

    A linear map to `dim`, five Transformer layers of five heads, and the last step's output. As in
    MultiBench, which the published code calls: no positions, no mask, so that the last step is one
    of the zeros at the end where an utterance is shorter than the longest one of its batch.
    """

    def __init__(self, width: int, dim: int = 40) -> None:
        super().__init__()
        self.project = nn.Linear(width, dim, bias=False)
        layer = nn.TransformerEncoderLayer(dim, nhead=5, batch_first=True)
        # nested tensors are for masks, and not for an odd number of heads
        self.layers = nn.TransformerEncoder(layer, num_layers=5, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.project(x))[:, -1]


def read_weights(path: str) -> dict[str, Tensor]:
    """A file of torchvision's weights."""
    return torch.load(path, map_location="cpu", weights_only=True)
