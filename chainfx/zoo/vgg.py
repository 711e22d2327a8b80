"""VGG with BatchNorm for 32x32 images: five stages, global pooling, and one linear layer in place of three."""

from torch import Tensor, nn

__all__ = ["VGG", "vgg", "vgg8", "vgg11", "vgg13", "vgg16", "vgg19"]

_MULTIPLES = (1, 2, 4, 8, 8)


class VGG(nn.Module):
    """Stage i: ``layers[i]`` 3x3 convolutions with bias of ``width`` times 1, 2, 4, 8, 8 channels, and a max-pool."""

    def __init__(self, layers: tuple[int, ...], width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential()
        before = in_channels
        for count, multiple in zip(layers, _MULTIPLES, strict=False):
            for _ in range(count):
                channels = width * multiple
                self.features.extend(
                    (nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()),
                )
                before = channels
            self.features.append(nn.MaxPool2d(2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes); H and W at least 2 to the number of stages."""
        logits: Tensor = self.classifier(self.flatten(self.pool(self.features(x))))
        return logits


def vgg(layers: tuple[int, ...] = (2, 2, 4, 4, 4), width: int = 64, num_classes: int = 10, in_channels: int = 3) -> VGG:
    """A VGG with BatchNorm for small images; the default is VGG-19.

    ``layers``: 3x3 convolutions of each stage, at most five stages, of ``width`` times 1, 2, 4, 8, 8 channels.

    >>> sum(p.numel() for p in vgg().parameters())
    20040522
    """
    return VGG(tuple(layers), width, num_classes, in_channels)


def vgg8(num_classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG-8: one convolution a stage; 67.8 M MACs, 3.92 M parameters."""
    return vgg((1, 1, 1, 1, 1), 64, num_classes, in_channels)


def vgg11(num_classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG-11: 152.8 M MACs, 9.23 M parameters."""
    return vgg((1, 1, 2, 2, 2), 64, num_classes, in_channels)


def vgg13(num_classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG-13: 228.3 M MACs, 9.42 M parameters."""
    return vgg((2, 2, 2, 2, 2), 64, num_classes, in_channels)


def vgg16(num_classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG-16: 313.2 M MACs, 14.73 M parameters."""
    return vgg((2, 2, 3, 3, 3), 64, num_classes, in_channels)


def vgg19(num_classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG-19: 398.14 M MACs, 20.04 M parameters."""
    return vgg((2, 2, 4, 4, 4), 64, num_classes, in_channels)
