"""Values inside of a network: a network that returns some of them beside its output, over the same tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from chainfx.errors import TuningError
from chainfx.ir.graph import edit, ends_of, output_node, shape_of
from chainfx.passes import exit_places

__all__ = ["Tapped", "hinted", "penultimate", "widths"]


class Tapped(nn.Module):
    """A network that returns ``(output, values)``, with the values of the nodes that are named.

    Its parameters, buffers and modules are those of the graph that it is made of, so training it trains that.
    """

    def __init__(self, graph_module: GraphModule, names: Sequence[str]) -> None:
        super().__init__()
        graph = Graph()
        copies: dict[Node, Node] = {}
        graph.graph_copy(graph_module.graph, copies)
        by_name = {node.name: node for node in copies}
        output = output_node(graph_module).args[0]
        mapped = torch.fx.node.map_arg(output, lambda node: copies[node])
        graph.output((mapped, tuple(copies[by_name[name]] for name in names)))
        self.inner = GraphModule(graph_module, graph)

    def forward(self, *inputs: Tensor) -> tuple[object, tuple[Tensor, ...]]:
        """The output of the network, and the values of the nodes."""
        found: tuple[object, tuple[Tensor, ...]] = self.inner(*inputs)
        return found


def penultimate(graph_module: GraphModule) -> str:
    """The name of the node that the last layer reads, of the final output where there are exits."""
    _, last = ends_of(graph_module)
    order = {node: place for place, node in enumerate(graph_module.graph.nodes)}
    layer = max(last, key=lambda layer: order[layer.node], default=None)
    if layer is None:
        raise TuningError("tuning: contrast_weight compares what the last layer reads, and the network has no layer.")
    return edit.input_of(layer.node).name


def hinted(
    layers: Sequence[str] | None, own: GraphModule, teacher: GraphModule, inputs: Sequence[Tensor]
) -> list[tuple[str, str]]:
    """The pairs of nodes to compare, of the network and of its teacher: those that are named, or three in each.

    Raises :class:`~chainfx.errors.TuningError` for a name that a network has not.
    """
    if layers is None:
        return list(zip(_three(own, inputs), _three(teacher, inputs), strict=False))
    pairs = [(name.partition("=")[0], name.partition("=")[2] or name) for name in layers]
    for names, graph_module, whose in ((0, own, "network"), (1, teacher, "teacher")):
        known = {node.name for node in graph_module.graph.nodes}
        for pair in pairs:
            if pair[names] not in known:
                raise TuningError(f"tuning: layers names {pair[names]!r}, but the {whose} has no such node.")
    return pairs


def _three(graph_module: GraphModule, inputs: Sequence[Tensor]) -> list[str]:
    """Three places where one tensor with places carries everything, spread evenly; fewer where there are fewer."""
    dims = {node.name: len(shape_of(node)) for node in graph_module.graph.nodes if "val" in node.meta}
    places = [name for name in exit_places(graph_module, inputs) if dims.get(name, 0) > 2]
    if not places:
        raise TuningError(
            "tuning: a network has no place whose feature maps could be compared; name some in layers=, or leave "
            "hint_weight and attention_weight out."
        )
    count = min(3, len(places))
    return [places[(2 * index + 1) * len(places) // (2 * count)] for index in range(count)]


def widths(network: nn.Module, inputs: Sequence[Tensor]) -> list[torch.Size]:
    """The shapes of the values that a tapped network returns for some inputs, seen in eval mode."""
    with edit.evaluating(network), torch.no_grad():
        return [value.shape for value in network(*inputs)[1]]
