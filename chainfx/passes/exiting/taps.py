"""Where an exit can be: the nodes that carry the whole network, and those of them that share its work evenly."""

from collections.abc import Callable, Sequence
from itertools import accumulate

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from chainfx.bitops import count
from chainfx.errors import PassError
from chainfx.ir.graph import ends_of, shape_of

__all__ = ["Fits", "balanced_taps", "exit_places", "named_taps"]

Fits = Callable[[Node], bool]
"""Whether a head can make answers of the network's shape from the value of a node."""


def named_taps(graph_module: GraphModule, names: Sequence[str], fits: Fits) -> list[Node]:
    """The nodes with these names, in graph order; :class:`PassError` for one where no exit can be.

    Masks and other values that no weight has a part in may be needed beside a tap that is named.
    """
    whole = _cuts(graph_module, beside_masks=True)
    cuts = [node for node in whole if fits(node)]
    by_name = {node.name: node for node in graph_module.graph.nodes}
    for name in names:
        if name not in by_name:
            raise PassError(f"early-exit: there is no node {name!r}; usable are {_listed(cuts)}.")
        if by_name[name] not in whole:
            raise PassError(f"early-exit: node {name!r} does not carry the whole network; usable are {_listed(cuts)}.")
        if by_name[name] not in cuts:
            raise PassError(
                f"early-exit: node {name!r} has shape {shape_of(by_name[name])}, from which no head makes answers of "
                f"the network's shape; usable are {_listed(cuts)}."
            )
    order = list(graph_module.graph.nodes)
    return sorted((by_name[name] for name in names), key=order.index)


def balanced_taps(graph_module: GraphModule, number: int, inputs: Sequence[Tensor], fits: Fits) -> list[Node]:
    """``number`` of the cuts that fit, nearest to equal shares of the MACs; of those with equal MACs, the last.

    Where there are too few, as in a transformer whose layers all read a mask, such values may be needed beside the cut.
    """
    last_with, total = _places(graph_module, inputs, fits, number)
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
    """The nodes where an exit can be, in graph order; of those with equal MACs before them, the last.

    Beside them no other value is needed, or, where there is no choice between such nodes, masks and the like alone.
    """
    last_with, _ = _places(graph_module, inputs, lambda node: True, 2)
    return tuple(last_with[before].name for before in sorted(last_with))


def _places(
    graph_module: GraphModule, inputs: Sequence[Tensor], fits: Fits, wanted: int
) -> tuple[dict[int, Node], int]:
    """The cuts that fit by the MACs before them, of those with equal MACs the last, and the MACs of the network.

    Those beside masks are among them if there are fewer than ``wanted`` without.
    """
    macs = {row.node: row.macs for row in count(graph_module, inputs).rows}
    before = accumulate(macs.get(node.name, 0) for node in graph_module.graph.nodes)
    place = dict(zip(graph_module.graph.nodes, before, strict=True))
    places = {place[node]: node for node in filter(fits, _cuts(graph_module))}
    if len(places) < wanted:
        places = {place[node]: node for node in filter(fits, _cuts(graph_module, beside_masks=True))}
    return places, sum(macs.values())


def _cuts(graph_module: GraphModule, *, beside_masks: bool = False) -> list[Node]:
    """The nodes where one tensor of 2 to 4 dimensions carries everything, between the first layer and the last.

    Who reads no more than the size of a tensor does not need it. ``beside_masks``: also those beside which later layers
    need values that no weight has a part in.
    """
    first, last = ends_of(graph_module)
    nodes = [node for node in graph_module.graph.nodes if node.op not in ("get_attr", "output")]
    place = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    inside = range(*(min(place[layer.node] for layer in end) for end in (first, last)))
    last_read = {node: max((place[user] for user in node.users if not _is_size(user)), default=0) for node in nodes}
    weighed = _weighed(graph_module) if beside_masks else set(nodes)
    cuts, live = [], set[Node]()
    for node in nodes:
        live = {value for value in live if last_read[value] > place[node]}
        if last_read[node] and _holds_tensors(node):
            live.add(node)
        one = live & (weighed | {node}) == {node} and isinstance(node.meta["val"], Tensor)
        if one and place[node] in inside and 2 <= len(shape_of(node)) <= 4:
            cuts.append(node)
    return cuts


def _weighed(graph_module: GraphModule) -> set[Node]:
    """The nodes that a parameter has a part in."""
    own = {name for name, _ in graph_module.named_parameters(remove_duplicate=False)}
    found = set[Node]()
    for node in graph_module.graph.nodes:
        reads = node.op in ("get_attr", "call_module") and any(
            name == node.target or name.startswith(f"{node.target}.") for name in own
        )
        if reads or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _holds_tensors(node: Node) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(node.meta.get("val")))


def _is_size(node: Node) -> bool:
    """Whether a node reads a size, a type or a device: it has a value, and no tensor in it."""
    return node.meta.get("val") is not None and not _holds_tensors(node)


def _listed(nodes: Sequence[Node]) -> str:
    return ", ".join(node.name for node in nodes) or "none"
