"""MobileNetV2 (Sandler et al. 2018) with the strides that suit 32x32 images."""

from torch import Tensor, nn

__all__ = ["CIFAR_STRIDES", "InvertedResidual", "MobileNetV2", "mobilenet_v2"]

CIFAR_STRIDES = (1, 1, 2, 2, 1, 2, 1)

# Sandler et al. 2018, table 2: expansion, output channels, blocks
_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))


def _conv(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(after)


class InvertedResidual(nn.Module):
    """Expand (1x1), filter each channel (3x3), project (1x1, linear); added to the input where the shapes match.

    (N, in, H, W) -> (N, out, H / stride, W / stride). Without expansion the first convolution is left out.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        expand = (*_conv(in_channels, hidden, 1), nn.ReLU6()) if expansion != 1 else ()
        filter_ = (*_conv(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6())
        self.layers = nn.Sequential(*expand, *filter_, *_conv(hidden, out_channels, 1))
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        out: Tensor = self.layers(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Stem of 32 channels, seven stages of inverted residuals, 1280 features, one linear layer."""

    def __init__(self, width: float, num_classes: int, in_channels: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        before = int(32 * width)
        self.features = nn.Sequential(*_conv(in_channels, before, 3), nn.ReLU6())
        for (expansion, channels, count), stride in zip(_STAGES, strides, strict=True):
            after = int(channels * width)
            for index in range(count):
                self.features.append(InvertedResidual(before, after, stride if index == 0 else 1, expansion))
                before = after
        last = int(1280 * width)
        self.features.extend((*_conv(before, last, 1), nn.ReLU6()))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes)."""
        logits: Tensor = self.classifier(self.flatten(self.pool(self.features(x))))
        return logits


def mobilenet_v2(
    width: float = 1.0,
    num_classes: int = 10,
    in_channels: int = 3,
    strides: tuple[int, ...] = CIFAR_STRIDES,
) -> MobileNetV2:
    """MobileNetV2 for small images: stride-1 stem, ``strides`` of the first block of each of the seven stages.

    ``width`` multiplies every channel count (rounded down), the features before the classifier included.

    >>> sum(p.numel() for p in mobilenet_v2().parameters())
    2236682
    """
    return MobileNetV2(width, num_classes, in_channels, tuple(strides))
