"""The LeNets of the literature on compression, for 28x28 images: LeNet-300-100 and the LeNet-5 that Caffe ships."""

from torch import Tensor, nn

__all__ = ["LeNet5", "LeNet300", "lenet5", "lenet_300_100"]


class LeNet300(nn.Module):
    """Three linear layers of 300, 100 and ``num_classes`` outputs on images of 28x28 as vectors."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc1, self.relu1 = nn.Linear(784 * in_channels, 300), nn.ReLU()
        self.fc2, self.relu2 = nn.Linear(300, 100), nn.ReLU()
        self.fc3 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, 28, 28) -> (N, num_classes)."""
        logits: Tensor = self.fc3(self.relu2(self.fc2(self.relu1(self.fc1(self.flatten(x))))))
        return logits


class LeNet5(nn.Module):
    """Two 5x5 convolutions of 20 and 50 channels, each with a max-pool, and two linear layers."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1, self.pool1 = nn.Conv2d(in_channels, 20, 5), nn.MaxPool2d(2)
        self.conv2, self.pool2 = nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1, self.relu = nn.Linear(800, 500), nn.ReLU()
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, 28, 28) -> (N, num_classes)."""
        x = self.flatten(self.pool2(self.conv2(self.pool1(self.conv1(x)))))
        logits: Tensor = self.fc2(self.relu(self.fc1(x)))
        return logits


def lenet_300_100(num_classes: int = 10, in_channels: int = 1) -> LeNet300:
    """LeNet-300-100: 266,200 MACs.

    >>> sum(p.numel() for p in lenet_300_100().parameters())
    266610
    """
    return LeNet300(num_classes, in_channels)


def lenet5(num_classes: int = 10, in_channels: int = 1) -> LeNet5:
    """LeNet-5 as Caffe has it, without an activation behind its convolutions: 2.29 M MACs.

    >>> sum(p.numel() for p in lenet5().parameters())
    431080
    """
    return LeNet5(num_classes, in_channels)
