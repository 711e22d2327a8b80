"""What the graph of a network says about which passes suit it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from chainfx.bitops import count
from chainfx.ir.graph import DEPTHWISE, FactName, edit, ends_of, facts_of, layers_of, operator_of, output_node

__all__ = ["Network", "NetworkKind", "unfilled"]

NetworkKind = Literal["convolutional", "transformer", "language model", "other"]
"""What a network is, as far as advice depends on it."""

_BLOCK = 8
_FROM = 32  # of fewer channels a block that is not full is as costly as what rounding them would remove
_ATTENTION = "scaled_dot_product_attention"


@dataclass(frozen=True, slots=True)
class Network:
    """What lint reads from a graph.

    ``kind``: ``"language model"`` has attention, reads words and scores each word of its vocabulary at every place;
    ``"transformer"`` has attention; ``"convolutional"`` has convolutions and no attention. ``depthwise``: the share of
    all multiply-accumulates that depthwise convolutions do. ``facts``: the names of the facts that hold already.
    ``unfilled``: layers whose number of channels does not fill the blocks of kernels, see :func:`unfilled`.
    """

    kind: NetworkKind
    depthwise: float
    facts: frozenset[FactName]
    unfilled: Mapping[str, int]

    @classmethod
    def of(cls, graph_module: GraphModule, example_inputs: tuple[Tensor, ...]) -> Self:
        """What the graph of a network says, for inputs of these shapes."""
        report = count(graph_module, example_inputs)  # also puts the shapes into the nodes
        calls = {node.name for node in graph_module.graph.nodes if node.target in DEPTHWISE.values()}
        depthwise = sum(row.macs for row in report.rows if row.node in calls)
        return cls(
            _kind(graph_module), depthwise / max(report.macs, 1), facts_of(graph_module).names, unfilled(graph_module)
        )


def unfilled(graph_module: GraphModule) -> dict[str, int]:
    """The layers that make a number of channels that 8 does not divide, by their path, with that number.

    Only from 32 channels on, and without the last layers, which make what the network gives.
    """
    _, last = ends_of(graph_module)
    widths = {
        layer.path: layer.tensor.shape[layer.out_axis] * (layer.groups if layer.transposed else 1)
        for layer in layers_of(graph_module)
        if layer not in last
    }
    return {path: width for path, width in widths.items() if width >= _FROM and width % _BLOCK}


def _kind(graph_module: GraphModule) -> NetworkKind:
    nodes = list(graph_module.graph.nodes)
    names = [operator_of(node, graph_module.get_submodule).name for node in nodes]
    if _ATTENTION in names or ("softmax" in names and any(map(edit.is_product, nodes))):
        return "language model" if _scores_words(graph_module, nodes) else "transformer"
    return "convolutional" if "conv" in names else "other"


def _scores_words(graph_module: GraphModule, nodes: list[Node]) -> bool:
    """Whether the last axis of a result of three axes is as long as an embedding."""
    returned = output_node(graph_module).args[0]
    shape = _shape(returned) if isinstance(returned, Node) else ()
    sizes = {_words(graph_module, node) for node in nodes} - {0}
    return len(shape) == 3 and shape[-1] in sizes


def _words(graph_module: GraphModule, node: Node) -> int:
    """The number of words of the embedding that a node calls; 0 for any other node."""
    module = edit.module_of(graph_module, node, nn.Embedding)
    if module is not None:
        return module.num_embeddings
    if node.op == "call_function" and operator_of(node).name == "embedding":
        weights = (value for value in node.all_input_nodes if value.op == "get_attr")
        return next((_shape(weight)[0] for weight in weights), 0)
    return 0


def _shape(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()
