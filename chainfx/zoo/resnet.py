"""Residual networks for 32x32 images: a 3x3 stride-1 stem, stages of basic blocks, global pooling, one linear layer."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BasicBlock", "PadShortcut", "ResNet", "Shortcut", "resnet", "resnet20", "resnet32", "resnet34", "resnet56"]

Shortcut = Literal["A", "B"]


class PadShortcut(nn.Module):
    """Shortcut "A" (He et al. 2016, sec. 4.2): every ``stride``-th pixel, new channels are zeros; no parameters.

    (N, C, H, W) -> (N, C + before + after, ceil(H / stride), ceil(W / stride)), the zeros half before and half after.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the wider and smaller tensor."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def _shortcut(kind: Shortcut, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if kind == "A":
        return PadShortcut(in_channels, out_channels, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut: (N, in, H, W) -> (N, out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, shortcut: Shortcut = "B") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(shortcut, in_channels, out_channels, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: Tensor = self.relu2(out + self.shortcut(x))
        return result


class ResNet(nn.Module):
    """Stage i has ``blocks[i]`` basic blocks of ``width * 2**i`` channels; all stages but the first halve the image."""

    def __init__(
        self, blocks: tuple[int, ...], width: int, num_classes: int, in_channels: int, shortcut: Shortcut
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.stages = nn.Sequential()
        before = width
        for index, count in enumerate(blocks):
            channels = width * 2**index
            first = BasicBlock(before, channels, stride=1 if index == 0 else 2, shortcut=shortcut)
            rest = (BasicBlock(channels, channels) for _ in range(count - 1))
            self.stages.append(nn.Sequential(first, *rest))
            before = channels
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes)."""
        x = self.stages(self.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(self.flatten(self.pool(x)))
        return logits


def resnet(
    blocks: tuple[int, ...] = (3, 4, 6, 3),
    width: int = 64,
    num_classes: int = 10,
    in_channels: int = 3,
    shortcut: Shortcut = "B",
) -> ResNet:
    """A ResNet of basic blocks for small images; the default is ResNet-34, and (2, 2, 2, 2) is ResNet-18.

    ``blocks``: basic blocks of each stage, of ``width``, ``2 * width``, ... channels. ``shortcut`` where the shape
    changes: ``"B"`` a 1x1 convolution with BatchNorm, ``"A"`` no parameters (He et al. 2016, sec. 3.3).

    >>> sum(p.numel() for p in resnet().parameters())
    21282122
    """
    return ResNet(tuple(blocks), width, num_classes, in_channels, shortcut)


def resnet34(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-34 for 32x32 images: 1159.40 M MACs, 21.28 M parameters."""
    return resnet((3, 4, 6, 3), 64, num_classes, in_channels)


def resnet20(num_classes: int = 10, in_channels: int = 3, shortcut: Shortcut = "A") -> ResNet:
    """The three-stage ResNet-20 of He et al. 2016, sec. 4.2 (16, 32, 64 channels): 0.27 M parameters."""
    return resnet((3, 3, 3), 16, num_classes, in_channels, shortcut)


def resnet32(num_classes: int = 10, in_channels: int = 3, shortcut: Shortcut = "A") -> ResNet:
    """The three-stage ResNet-32 of He et al. 2016, sec. 4.2 (16, 32, 64 channels): 0.46 M parameters."""
    return resnet((5, 5, 5), 16, num_classes, in_channels, shortcut)


def resnet56(num_classes: int = 10, in_channels: int = 3, shortcut: Shortcut = "A") -> ResNet:
    """The three-stage ResNet-56 of He et al. 2016, sec. 4.2 (16, 32, 64 channels): 0.85 M parameters."""
    return resnet((9, 9, 9), 16, num_classes, in_channels, shortcut)
