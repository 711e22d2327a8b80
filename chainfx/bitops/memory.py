"""The memory that the activations of a network take at a time, at their widths."""

from collections.abc import Mapping

from torch.fx import GraphModule, Node

from chainfx.bitops.widths import tensors_in
from chainfx.ir.graph import Format, Trait, names_with, operator_of, ops

__all__ = ["peak_activation_bits"]

_IN_PLACE = names_with(Trait.VIEW) | names_with(Trait.POINTWISE) | names_with(Trait.BROADCAST)
_QUANTIZERS = (ops.quantize_activation,)


def peak_activation_bits(graph_module: GraphModule, formats: Mapping[Node, Format]) -> int:
    """The most bits that the activations of a batch take at a time, its inputs included, after ``propagate_shapes``.

    A tensor lives from the node that makes it to the last node that reads it. Views, and element-wise work that is the
    only reader of its input, take no memory of their own: the result lies where the input lay, at the width of the last
    of them, so that what a layer hands to a quantizer is stored in the bits of that quantizer. Both branches of a
    ``torch.cond`` count.
    """
    nodes = list(graph_module.graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    owner: dict[Node, Node] = {}  # of each activation the node that made the memory in which it lies
    bits: dict[Node, int] = {}
    until: dict[Node, int] = {}
    for node in nodes:
        tensors = tensors_in(node.meta.get("val"))
        is_activation = node.op == "placeholder" or not owner.keys().isdisjoint(node.all_input_nodes)
        if not is_activation or not tensors or node not in formats:
            continue
        source = _lies_in(graph_module, node, owner)
        first = owner[node] = owner[source] if source is not None else node
        bits[first] = max(tensor.numel() for tensor in tensors) * formats[node].bits
        until[first] = max([until.get(first, 0), *(place[user] for user in _readers(node))])
    changes = [0] * (len(nodes) + 1)
    for first, size in bits.items():
        changes[place[first]] += size
        changes[max(until[first], place[first]) + 1] -= size
    alive = peak = 0
    for change in changes:
        alive += change
        peak = max(peak, alive)
    return peak


def _readers(node: Node) -> list[Node]:
    """The nodes that read values of a node, not only its sizes."""
    return [user for user in node.users if user.op == "output" or tensors_in(user.meta.get("val"))]


def _lies_in(graph_module: GraphModule, node: Node, activations: Mapping[Node, Node]) -> Node | None:
    """The input in whose memory the result of a node can lie."""
    sources = [each for each in node.all_input_nodes if each in activations and len(_readers(each)) == 1]
    if not sources or not node.op.startswith("call"):
        return None
    in_place = node.target in _QUANTIZERS or operator_of(node, graph_module.get_submodule).name in _IN_PLACE
    return sources[0] if in_place else None
