"""What the counter needs to know of every node, read off the graph once for all who ask."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from chainfx.ir.graph import Operator, operator_of

__all__ = ["Reading", "reading_of", "tensors_in"]


@dataclass(frozen=True, slots=True)
class Reading:
    """A graph of which every result is known, and what its nodes are.

    ``modules``: those that it calls, by path. ``tensors``: for each node the tensors, without data, that it gives, and
    ``elements`` those of the largest, 0 if it gives none. ``sources``: for each node the nodes that it reads.
    ``operators``: for each node that calls something, what it is.
    """

    graph_module: GraphModule
    modules: Mapping[str, nn.Module]
    tensors: Mapping[Node, list[Tensor]]
    elements: Mapping[Node, int]
    sources: Mapping[Node, list[Node]]
    operators: Mapping[Node, Operator]

    def called_by(self, node: Node) -> nn.Module | None:
        """The module that a node calls; ``None`` if it calls none."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def held_at(self, path: str) -> Any:
        """What the network holds at a path, such as a parameter."""
        prefix, _, name = path.rpartition(".")
        return getattr(self.modules[prefix], name)


def reading_of(graph_module: GraphModule, modules: Mapping[str, nn.Module]) -> Reading:
    """Read a graph after ``propagate_shapes``; ``modules`` are its modules by path."""
    nodes = list(graph_module.graph.nodes)
    tensors = {node: tensors_in(node.meta.get("val")) for node in nodes}
    return Reading(
        graph_module,
        modules,
        tensors,
        {node: max(map(Tensor.numel, found), default=0) for node, found in tensors.items()},
        {node: node.all_input_nodes for node in nodes},
        {node: operator_of(node, modules.__getitem__) for node in nodes if node.op.startswith("call")},
    )


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in what a node gives: the value itself, or those in a list or tuple, nested ones included."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []
