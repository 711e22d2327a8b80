"""Rules for indexing.

A slice of channels keeps those channels, and its bounds are corrected. Channels that are picked by position must stay.
A constant tensor of positions, as in ``x[:, order]``, follows the channels that it picks.
"""

from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from chainfx.ir.channels.labels import Labels, select_first, spread, varying
from chainfx.ir.channels.walk import Flow, Rule

__all__ = ["INDEXING"]


def unbind(flow: Flow, node: Node) -> Any:
    """The rule for ``unbind`` and ``select``: channels along the dimension are picked by position, and must stay."""
    labels = flow.label(node.args[0])
    dim = flow.argument(node, 1, "dim", 0) % labels.dim()
    labels = flow.ledger.pin(labels, (dim,), f"it is indexed by position (node {node.name!r})")
    if flow.operator(node).name == "select":
        return spread(labels.select(dim, 0))
    return tuple(spread(part) for part in labels.unbind(dim))


def getitem(flow: Flow, node: Node) -> Any:
    """The rule for ``x[...]``, where x is a tensor or a tuple of tensors."""
    parts = flow.parts(node.args[0])
    if parts is not None:
        return parts[flow.argument(node, 1, "index")]
    selected = _selected(flow, node, node.args[1])
    if selected is not None:
        return selected
    found = _indexed(flow, node, node.args[1], (1,))
    return flow.unknown(node, "it is indexed by a truth value") if found is None else spread(found)


def _selected(flow: Flow, node: Node, raw: Any) -> Labels | None:
    """The labels of ``x[:, order]`` with a constant ``order``; ``None`` if the index ``raw`` is anything else."""
    items = list(raw) if isinstance(raw, tuple) else [raw]
    if any(item != slice(None) for item in items[:-1]):
        return None
    return _at(flow, node, items[-1], len(items) - 1)


def _at(flow: Flow, node: Node, index: Any, dim: int) -> Labels | None:
    """The labels of the channels along ``dim`` that ``index`` picks; ``None`` if it is no tensor of the network."""
    labels = flow.label(node.args[0])
    if not isinstance(index, Node) or index.op != "get_attr" or dim not in varying(labels):
        return None
    positions = flow.tensor(flow.path(index))
    known = positions.dim() == 1 and not positions.is_meta and positions.dtype in (torch.int64, torch.int32)
    if not known or flow.ledger.is_plain(labels):
        return None
    return flow.ledger.select(flow.path(index), positions.cpu(), labels, dim).expand(flow.shape(node))


def assign(flow: Flow, node: Node) -> Any:
    """The rule for ``tensor[index] = value``: the part that is assigned to is coupled with the value."""
    part = _indexed(flow, node, node.args[1], (1,))
    if part is None:
        return flow.unknown(node, "it is indexed by a truth value")
    if flow.is_tensor(node.args[2]):
        flow.combine(part, flow.label(node.args[2]), node)
    return flow.label(node.args[0])


def _indexed(flow: Flow, node: Node, raw: Any, where: tuple[int, ...]) -> Labels | None:
    """The labels of the part of the first argument that the index ``raw``, which stands at ``where``, picks.

    ``None`` if the size of the part depends on the data, as with an index of truth values.
    """
    labels = flow.label(node.args[0])
    items = list(raw) if isinstance(raw, tuple) else [raw]
    items = [_item(flow, node, item) for item in items]
    if any(isinstance(item, bool) for item in items):
        return None
    dim = 0
    for position, item in enumerate(items):
        if item is Ellipsis:
            dim += labels.dim() - sum(each is not None and each is not Ellipsis for each in items)
        elif item is not None:
            labels = _along(flow, node, labels, dim, item, (*where, position) if isinstance(raw, tuple) else where)
            dim += 1
    return labels[tuple(items)]


def _item(flow: Flow, node: Node, item: Any) -> Any:
    """One item of the index of ``node``, ready for labels: a tensor of positions becomes one that picks the first."""
    item = map_arg(item, lambda each: flow.values.get(each, each))
    flow.freeze_positions(node, item)
    shape = item.meta["val"].shape if isinstance(item, Node) else None
    if isinstance(item, Node) and item.meta["val"].dtype is torch.bool:
        return True
    if isinstance(item, list):
        shape = torch.Size([len(item)])
    return item if shape is None else torch.zeros((), dtype=torch.int64, device="cpu").expand(shape)


def _along(flow: Flow, node: Node, labels: Labels, dim: int, item: Any, where: tuple[int, ...]) -> Labels:
    """The labels before they are indexed with ``item`` along ``dim``: what is picked by position is pinned."""
    if dim not in varying(labels) or item == slice(None):
        return labels
    reason = f"it is indexed by position (node {node.name!r})"
    if not isinstance(item, slice):
        return flow.ledger.pin(labels, (dim,), reason)
    start, stop, step = item.indices(labels.size(dim))
    if step > 1:
        return _strided(flow, labels, dim, (start, stop, step), reason)
    part = labels.narrow(dim, start, max(stop - start, 0))
    if part.size(dim) < labels.size(dim):
        flow.literal(node, "slice", where, ((labels.narrow(dim, 0, start), dim), (labels.narrow(dim, 0, stop), dim)))
        flow.ledger.parts.append(part)
    return labels


def _strided(flow: Flow, labels: Labels, dim: int, bounds: tuple[int, int, int], reason: str) -> Labels:
    """The labels before every ``step``-th channel is taken: neighbours are coupled, ``step`` at a time.

    So what is taken afterwards is still every ``step``-th of the channels that are left.
    """
    start, stop, step = bounds
    size = labels.size(dim)
    if start >= step or stop < size or size % step:
        return flow.ledger.pin(labels, (dim,), reason)
    blocks = flow.ledger.pin(labels.unflatten(dim, (-1, step)), (dim + 1,), reason)
    return blocks.flatten(dim, dim + 1)


def look_up(flow: Flow, node: Node) -> Labels:
    """The rule for ``gather``, ``index_select`` and ``take_along_dim``: what is looked up by position must stay."""
    labels, shape = flow.label(node.args[0]), flow.shape(node)
    dim = flow.argument(node, 2 if flow.operator(node).name == "take_along_dim" else 1, "dim") % labels.dim()
    if flow.operator(node).name == "index_select":
        selected = _at(flow, node, flow.raw(node, 2, "index"), dim)
        if selected is not None:
            return selected
    reason = f"it is indexed by position (node {node.name!r})"
    cut = tuple(d for d in range(labels.dim()) if d == dim or shape[d] != labels.size(d))
    labels = select_first(flow.ledger.pin(labels, cut, reason), cut)
    if flow.operator(node).name == "index_select":
        flow.freeze_positions(node, flow.raw(node, 2, "index"))
        return labels.expand(shape)
    index = next(each for each in node.all_input_nodes[1:] if flow.is_tensor(each))
    return flow.combine(labels, flow.label(index), node).expand(shape)


INDEXING: dict[str, Rule] = {
    **dict.fromkeys(("gather", "index_select", "take_along_dim"), look_up),
    **dict.fromkeys(("unbind", "select"), unbind),
    "assign": assign,
    "getitem": getitem,
}
