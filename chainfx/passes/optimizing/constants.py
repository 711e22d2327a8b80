"""Values that depend on no input of the network."""

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from chainfx.ir.graph import call_operator, edit, fresh_path
from chainfx.passes.optimizing.purity import changing_nodes, is_pure

__all__ = ["fold_constants"]

_SMALL = 4096  # a result of at most so many elements may be larger than what it is computed from


def fold_constants(graph_module: GraphModule) -> int:
    """Compute what depends on tensors of the network and constants alone, and store it; returns how many values.

    Left alone are random values, what is changed in place, the ops of chainfx (a quantized weight stays quantized), and
    results that would take more room than what they are computed from, unless they are small. A result computed from a
    parameter is a parameter: a weight that was computed becomes a weight.
    """
    sources = _constants(graph_module)
    ends = [
        node
        for node in sources
        if node.op != "get_attr" and any(user not in sources for user in node.users) and _is_worth_it(node, sources)
    ]
    for node in ends:
        _store(graph_module, node, sources[node])
    return len(ends)


def _constants(graph_module: GraphModule) -> dict[Node, frozenset[Node]]:
    """The nodes that depend on no input, each with the ``get_attr`` nodes that it is computed from."""
    changing = changing_nodes(graph_module)
    found: dict[Node, frozenset[Node]] = {}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            if isinstance(node.meta.get("val"), Tensor) and node not in changing:
                found[node] = frozenset({node})
        elif is_pure(node, changing) and all(each in found for each in node.all_input_nodes):
            found[node] = frozenset[Node]().union(*(found[each] for each in node.all_input_nodes))
    return found


def _is_worth_it(node: Node, sources: dict[Node, frozenset[Node]]) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return False
    stored: int = sum(source.meta["val"].numel() for source in sources[node])
    return int(value.numel()) <= max(stored, _SMALL)


def _store(graph_module: GraphModule, node: Node, sources: frozenset[Node]) -> None:
    """Put the value of a node into the network, and let what read the node read that."""
    value = _computed(graph_module, node)
    tensors = [edit.get_tensor(graph_module, str(source.target)) for source in sources]
    trains = value.is_floating_point() and any(isinstance(tensor, nn.Parameter) for tensor in tensors)
    path = fresh_path(graph_module, _name_for(node))
    edit.set_tensor(graph_module, path, value.clone().contiguous(), parameter=trains)
    with graph_module.graph.inserting_before(node):
        stored = graph_module.graph.get_attr(path)
    stored.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(stored)
    graph_module.graph.erase_node(node)


def _computed(graph_module: GraphModule, node: Node) -> Tensor:
    """The value of a node that depends on no input."""
    if node.op == "get_attr":
        return edit.get_tensor(graph_module, str(node.target)).detach()
    args, kwargs = map_arg((node.args, node.kwargs), lambda each: _computed(graph_module, each))
    value: Tensor = call_operator(node, args, kwargs)
    return value


def _name_for(node: Node) -> str:
    """A name for the value: that of the layer whose weight it is, else that of the node."""
    layers = [user for user in node.users if user.target in edit.LAYERS and user.args[1] is node]
    return f"{layers[0].name}_weight" if layers else node.name
