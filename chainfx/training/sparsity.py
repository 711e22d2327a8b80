"""A penalty that draws whole channels towards zero, so that pruning takes those that do not matter."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from chainfx.ir.graph import layers_of
from chainfx.passes import Penalty

__all__ = ["GroupLasso"]


@dataclass(frozen=True)
class GroupLasso(Penalty):
    """``strength`` times the sum over all output channels of the Euclidean norm of their weights (Wen et al. 2016).

    The last layers, whose channels are the answer, are left out, and norms are divided by the root of their size, so
    that layers of all widths feel the same.
    """

    strength: float

    def term(self, graph_module: GraphModule) -> Callable[[], Tensor]:
        """The penalty on the weights of convolution and linear layers that are trained."""
        layers = list(layers_of(graph_module))[:-1]
        weights = [(layer.tensor, layer.out_axis) for layer in layers if layer.tensor.requires_grad]
        device = next(graph_module.parameters()).device

        def penalty() -> Tensor:
            rows = [weight.movedim(axis, 0).flatten(1) for weight, axis in weights]
            norms = [each.norm(dim=1).sum() / math.sqrt(each.shape[1]) for each in rows]
            return self.strength * torch.stack(norms).sum() if norms else torch.zeros((), device=device)

        return penalty
