"""Additions of two tensors of one shape, as a skip connection ends in."""

from torch import Tensor
from torch.fx import GraphModule, Node

from chainfx.ir.graph.operators import operator_of

__all__ = ["summands_of"]


def summands_of(graph_module: GraphModule, node: Node) -> tuple[Node, Node] | None:
    """The two tensors of one shape and type whose sum a node gives; ``None`` for any other node.

    Needs shapes in ``node.meta["val"]``. A sum with a factor, a number or a tensor that is broadcast is none.
    """
    if operator_of(node, graph_module.get_submodule).name != "add" or len(node.args) != 2 or node.kwargs:
        return None
    left, right = node.args
    if not isinstance(left, Node) or not isinstance(right, Node):
        return None
    one, other = left.meta.get("val"), right.meta.get("val")
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return None
    return (left, right) if one.shape == other.shape and one.dtype == other.dtype else None
