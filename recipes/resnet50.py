"""ResNet-50 for `resnet50.yaml`: torchvision's architecture and names (v1.5: the 3 × 3 convolution has the stride),
random weights from a seed, no network. He et al., Deep Residual Learning for Image Recognition, 2015."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from random_weights import fill

if TYPE_CHECKING:
    import torch

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Inner channels, blocks, and stride of the first block of each stage."""

EXPANSION = 4
CLASSES = 1000
GAIN = math.sqrt(2)
"""A ReLU halves the mean square: He et al., Delving Deep into Rectifiers, 2015."""


def classifier() -> torch.nn.Module:
    """image f32[batch, 3, 224, 224] → logits f32[batch, 1000]."""
    return fill(_resnet50(), gain=GAIN, last_norms=("bn3.weight",))


def _resnet50() -> torch.nn.Module:
    from torch import nn

    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        "bn1": nn.BatchNorm2d(64),
        "relu": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool2d(3, stride=2, padding=1),
    }
    channels = 64
    for index, (width, blocks, stride) in enumerate(STAGES, start=1):
        stage = [_bottleneck(channels, width, stride)]
        channels = width * EXPANSION
        stage += [_bottleneck(channels, width, 1) for _ in range(blocks - 1)]
        layers[f"layer{index}"] = nn.Sequential(*stage)
    layers |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(1), "fc": nn.Linear(channels, CLASSES)}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def _bottleneck(channels: int, width: int, stride: int) -> torch.nn.Module:
    """1 × 1, 3 × 3, 1 × 1, and the sum with its input (through a 1 × 1 convolution where the shape changes)."""
    from torch import nn

    wide = width * EXPANSION

    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3, self.bn3 = nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide)
            self.relu = nn.ReLU(inplace=True)
            self.downsample: nn.Module | None = None
            if stride != 1 or channels != wide:
                self.downsample = nn.Sequential(
                    nn.Conv2d(channels, wide, 1, stride=stride, bias=False), nn.BatchNorm2d(wide)
                )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept = x if self.downsample is None else self.downsample(x)
            y = self.relu(self.bn1(self.conv1(x)))
            y = self.relu(self.bn2(self.conv2(y)))
            return self.relu(self.bn3(self.conv3(y)) + kept)

    return Bottleneck()
