"""Small pieces of networks, one for each way in which channels travel; tests/strategies.py makes networks of them."""

import torch
from torch import nn

LARGEST = 48
BLOCKS = {}


class Block(nn.Module):
    """``forward(m, x)`` with layers by name; ``shape`` of the result, without batch."""

    def __init__(self, forward, shape, **layers):
        super().__init__()
        self.body, self.shape = forward, shape
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.body(self, x)


def channels_of(shape):
    return shape[1] if len(shape) == 2 else shape[0]


def block(rank, divisible=1, even=False, largest=LARGEST):
    """Register ``make(shape, width, option)``; it fits where channels are divisible, and H and W even if asked for."""

    def fits(shape):
        channels = channels_of(shape)
        return (
            len(shape) == rank
            and channels % divisible == 0
            and 2 * divisible <= channels <= largest
            and (not even or shape[1] % 2 == 0)
        )

    def register(make):
        BLOCKS[make.__name__] = make, fits
        return make

    return register


def conv(inputs, out, size=3, **options):
    return nn.Conv2d(inputs, out, size, padding=size // 2, **options)


def param(*shape):
    return nn.Parameter(torch.randn(*shape))


def activation(option):
    return (nn.ReLU(), nn.GELU(), nn.Hardswish(), nn.Sigmoid(), nn.SiLU())[option % 5]
