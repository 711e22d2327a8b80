"""Gated recurrent units (Cho et al. 2014) that read an image row by row, written out so that every pass sees inside."""

import torch
from torch import Tensor, nn

__all__ = ["GRU", "gru"]


class _Cell(nn.Module):
    """One step: (N, width) of the row and (N, width) of the state -> (N, width), the state behind it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reset, self.keep, self.new = (nn.Linear(width, width) for _ in range(3))
        self.reset_state, self.keep_state, self.new_state = (nn.Linear(width, width, bias=False) for _ in range(3))

    def first(self, x: Tensor) -> Tensor:
        """The step from a state of zeros."""
        state: Tensor = (1 - self.keep(x).sigmoid()) * self.new(x).tanh()
        return state

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """The step from a state."""
        reset = (self.reset(x) + self.reset_state(state)).sigmoid()
        keep = (self.keep(x) + self.keep_state(state)).sigmoid()
        new = (self.new(x) + reset * self.new_state(state)).tanh()
        following: Tensor = keep * state + (1 - keep) * new
        return following


class _Layer(nn.Module):
    """A cell along the steps: (N, steps, width) -> (N, steps, width)."""

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.cell, self.steps = _Cell(width), steps

    def forward(self, x: Tensor) -> Tensor:
        """The state behind every step."""
        states = [self.cell.first(x[:, 0])]
        for step in range(1, self.steps):
            states.append(self.cell(x[:, step], states[-1]))
        return torch.stack(states, 1)


class GRU(nn.Module):
    """Rows embedded, layers of gated units along them, and the last state classified."""

    def __init__(self, steps: int, inputs: int, width: int, depth: int, num_classes: int) -> None:
        super().__init__()
        self.flatten = nn.Flatten(1, 2)
        self.embed = nn.Linear(inputs, width)
        self.layers = nn.Sequential(*(_Layer(width, steps) for _ in range(depth)))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, height, inputs) with channels * height = steps -> (N, num_classes)."""
        states = self.layers(self.embed(self.flatten(x)))
        logits: Tensor = self.head(states[:, -1])
        return logits


def gru(steps: int = 8, inputs: int = 8, width: int = 16, depth: int = 2, num_classes: int = 10) -> GRU:
    """Layers of gated recurrent units over the rows of an image, ``steps`` of ``inputs`` pixels each.

    Unrolled, with one bias a gate: a :class:`torch.nn.GRU` whose ``bias_hh`` are zero, which passes can prune and
    quantize inside.

    >>> sum(p.numel() for p in gru().parameters())
    3482
    """
    return GRU(steps, inputs, width, depth, num_classes)
