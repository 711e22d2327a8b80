"""Nodes that compute the same from the same."""

from collections.abc import Hashable
from typing import Any

from torch.fx import GraphModule, Node

from chainfx.passes.optimizing.purity import changing_nodes, is_pure

__all__ = ["merge_duplicates"]


def merge_duplicates(graph_module: GraphModule) -> int:
    """Let every value be computed once (common subexpressions); returns how many nodes went.

    Left alone are random values, modules (which may have a state), the ops of chainfx, and whatever is changed in place
    or read from something that is.
    """
    changing = changing_nodes(graph_module)
    first: dict[Hashable, Node] = {}
    count = 0
    for node in list(graph_module.graph.nodes):
        if not is_pure(node, changing):
            continue
        kept = first.setdefault(_key(node), node)
        if kept is not node:
            node.replace_all_uses_with(kept)
            graph_module.graph.erase_node(node)
            count += 1
    return count


def _key(node: Node) -> Hashable:
    """What two nodes have in common if they compute the same; tensors of the network count by their path."""
    return node.op, node.target, _frozen(node.args), _frozen(node.kwargs)


def _frozen(value: Any) -> Hashable:
    if isinstance(value, Node):
        return ("tensor", value.target) if value.op == "get_attr" else value
    if isinstance(value, tuple | list):
        return type(value).__name__, tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple((key, _frozen(each)) for key, each in sorted(value.items()))
    if isinstance(value, slice):
        return "slice", _frozen((value.start, value.stop, value.step))
    return type(value).__name__, str(value)
