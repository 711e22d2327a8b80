"""What capture adds to a graph of its own: a constant that depends on the mode, and assignment into a tensor."""

from typing import Any

import torch.fx
from torch import Tensor, nn

__all__ = ["ByMode", "Scalar", "assign_"]

Scalar = bool | int | float | str | None


class ByMode(nn.Module):
    """Returns ``training`` in train mode and ``evaluation`` in eval mode; no parameters, no state.

    It carries what a model reads from ``self.training`` into a captured graph, so that functional dropout follows
    ``train()`` and ``eval()`` of the graph. Deepcopies, pickles, and compiles with ``fullgraph=True``.
    """

    def __init__(self, training: Scalar = True, evaluation: Scalar = False) -> None:
        super().__init__()
        self.in_training = training
        self.in_evaluation = evaluation

    def forward(self) -> Scalar:
        """The constant of the current mode."""
        return self.in_training if self.training else self.in_evaluation

    def extra_repr(self) -> str:
        """Both constants."""
        return f"training={self.in_training!r}, evaluation={self.in_evaluation!r}"


@torch.fx.wrap
def assign_(tensor: Tensor, index: Any, value: Any) -> Tensor:
    """``tensor[index] = value``, in place; returns ``tensor``, so that the assignment has users in a graph."""
    tensor[index] = value
    return tensor
