"""What capture puts into a graph beside the calls of the model: constants that depend on the mode, and assignments."""

from typing import Any

from torch import Tensor, nn

from chainfx.ir.graph.tracing import one_node

__all__ = ["ByMode", "Scalar", "assign_"]

Scalar = bool | int | float | str | None
"""A constant that a graph can carry as a literal."""


class ByMode(nn.Module):
    """Returns ``in_training`` in train mode and ``in_evaluation`` in eval mode; no parameters, no state.

    It carries what a model reads from ``self.training`` into a captured graph, so that functional dropout follows
    ``train()`` and ``eval()`` of the graph. Deepcopies, pickles, and compiles with ``fullgraph=True``.
    """

    def __init__(self, in_training: Scalar = True, in_evaluation: Scalar = False) -> None:
        super().__init__()
        self.in_training = in_training
        self.in_evaluation = in_evaluation

    def forward(self) -> Scalar:
        """The constant of the current mode."""
        return self.in_training if self.training else self.in_evaluation

    def extra_repr(self) -> str:
        """Both constants."""
        return f"in_training={self.in_training!r}, in_evaluation={self.in_evaluation!r}"


@one_node
def assign_(tensor: Tensor, index: Any, value: Any) -> Tensor:
    """``tensor[index] = value``, in place; returns ``tensor``, so that the assignment has users in a graph."""
    tensor[index] = value
    return tensor
