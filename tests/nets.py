"""Small networks and graphs that several tests use."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainfx import zoo
from chainfx.ir.capture.ways import capture
from chainfx.ir.graph.checks import verify


def warm(model: nn.Module, *inputs: Tensor, seed: int = 0) -> nn.Module:
    """Give BatchNorms statistics and affine values that matter, then eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
    return model.eval()


def small_resnet(blocks=(2, 2), width=4, in_channels=1, num_classes=10) -> nn.Module:
    torch.manual_seed(0)
    return warm(zoo.resnet(blocks=blocks, width=width, in_channels=in_channels, num_classes=num_classes))


def graph_of(model: nn.Module, *inputs: Tensor) -> torch.fx.GraphModule:
    """The verified train form of a model, with shapes in ``node.meta``; whether it is faithful is not compared here."""
    graph_module = capture(model, inputs, compare=False)
    verify(graph_module, inputs)
    return graph_module


def images(count=4, size=8, channels=1, seed=0) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


class Scaled(nn.Module):
    """A layer whose weight is computed, and stays so, since something else reads a tensor that it comes from."""

    def __init__(self, layer: nn.Linear | nn.Conv1d):
        super().__init__()
        self.layer, self.scale = layer, nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        weight, bias = self.layer.weight * self.scale, self.layer.bias
        linear = isinstance(self.layer, nn.Linear)
        y = F.linear(x, weight, bias) if linear else F.conv1d(x, weight, bias, padding=self.layer.padding)
        return y * self.scale


def as_read(logits: Tensor, criterion: str) -> Tensor:
    """Logits (N, classes) as those of one token or one pixel a sample, if that is what a criterion of exits reads."""
    kind = criterion.partition("-")[0]
    return logits[:, None] if kind == "token" else logits[:, :, None, None] if kind == "pixel" else logits


class TokenBlock(nn.Module):
    """A block of a transformer over tokens of 32 numbers, and a head."""

    attend = staticmethod(nn.functional.scaled_dot_product_attention)

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x):
        x = x + self.proj(self.attend(*self.qkv(self.norm(x)).chunk(3, -1)))
        return self.head(x + self.down(nn.functional.gelu(self.up(x))))
