"""Where an exit can be: the nodes that carry the whole network, and those of them that share its work evenly."""

from collections.abc import Sequence

from torch import Tensor
from torch.fx import GraphModule, Node

from chainfx.bitops import count
from chainfx.errors import PassError
from chainfx.ir.graph import ends_of, shape_of

__all__ = ["balanced_taps", "exit_places", "named_taps"]


def named_taps(graph_module: GraphModule, names: Sequence[str]) -> list[Node]:
    """The nodes with these names, in graph order; :class:`PassError` for one where no exit can be."""
    cuts = _cuts(graph_module)
    by_name = {node.name: node for node in graph_module.graph.nodes}
    for name in names:
        if name not in by_name:
            raise PassError(f"early-exit: there is no node {name!r}; usable are {_listed(cuts)}.")
        if by_name[name] not in cuts:
            raise PassError(f"early-exit: node {name!r} does not carry the whole network; usable are {_listed(cuts)}.")
    order = list(graph_module.graph.nodes)
    return sorted((by_name[name] for name in names), key=order.index)


def balanced_taps(graph_module: GraphModule, number: int, inputs: Sequence[Tensor]) -> list[Node]:
    """``number`` of the cuts, nearest to equal shares of the MACs; of cuts with equal MACs before them, the last."""
    last_with, total = _places(graph_module, inputs)
    places = sorted(last_with)
    if len(places) < number:
        raise PassError(
            f"early-exit: exits={number}, but the network has only {len(places)} places for an exit "
            f"({_listed([last_with[at] for at in places])}); use fewer."
        )
    chosen: list[int] = []
    for index in range(1, number + 1):
        left = [at for at in places[: len(places) - (number - index)] if not chosen or at > chosen[-1]]
        chosen.append(min(left, key=lambda at: abs(at - total * index / (number + 1))))
    return [last_with[at] for at in chosen]


def exit_places(graph_module: GraphModule, inputs: Sequence[Tensor]) -> tuple[str, ...]:
    """The nodes where an exit can be, in graph order; of those with equal MACs before them, the last."""
    last_with, _ = _places(graph_module, inputs)
    return tuple(last_with[before].name for before in sorted(last_with))


def _places(graph_module: GraphModule, inputs: Sequence[Tensor]) -> tuple[dict[int, Node], int]:
    """The cuts by the MACs before them, of those with equal MACs the last, and the MACs of the whole network."""
    macs = {row.node: row.macs for row in count(graph_module, inputs).rows}
    total, before, last_with = sum(macs.values()), 0, dict[int, Node]()
    cuts = set(_cuts(graph_module))
    for node in graph_module.graph.nodes:
        before += macs.get(node.name, 0)
        if node in cuts:
            last_with[before] = node
    return last_with, total


def _cuts(graph_module: GraphModule) -> list[Node]:
    """The nodes where one tensor of 2 to 4 dimensions carries everything, between the first layer and the last."""
    first, last = ends_of(graph_module)
    nodes = [node for node in graph_module.graph.nodes if node.op not in ("get_attr", "output")]
    place = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    inside = range(*(min(place[layer.node] for layer in end) for end in (first, last)))
    cuts, live = [], set[Node]()
    for node in nodes:
        live = {value for value in live if max(place[user] for user in value.users) > place[node]}
        if node.users and isinstance(node.meta.get("val"), Tensor):
            live.add(node)
        if live == {node} and place[node] in inside and 2 <= len(shape_of(node)) <= 4:
            cuts.append(node)
    return cuts


def _listed(nodes: Sequence[Node]) -> str:
    return ", ".join(node.name for node in nodes) or "none"
