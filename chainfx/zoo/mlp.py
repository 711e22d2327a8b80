"""A network of linear layers, for numbers in a row."""

import itertools

from torch import nn

__all__ = ["mlp"]


def mlp(inputs: int, hidden: tuple[int, ...] = (64, 64), outputs: int = 1) -> nn.Sequential:
    """Linear layers with ReLU between them: (N, inputs) -> (N, outputs).

    >>> [tuple(parameter.shape) for parameter in mlp(10, (64,)).parameters()]
    [(64, 10), (64,), (1, 64), (1,)]
    """
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((inputs, *hidden)):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear((inputs, *hidden)[-1], outputs))
