"""Rules for operators without parameters: views move labels, arithmetic couples them, reductions end them.

A *rule* is a function that gets the :class:`~chainfx.ir.channels.walk.Flow` of an analysis and a node, and returns the
labels of what the node gives: which channel each of its elements belongs to. Most operators need no rule of their own.
Their traits (:class:`~chainfx.ir.graph.Trait`) say from where the elements of a result come, and the labels come from
there too. An operator without a rule freezes the channels of everything that goes into it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from chainfx.ir.channels.labels import Labels, blank, compact, select_first, spread, varying
from chainfx.ir.channels.rules.indexing import INDEXING
from chainfx.ir.channels.walk import Flow, Rule
from chainfx.ir.graph import Trait, call_operator, names_with

__all__ = ["BOTH", "RULES", "along", "as_positions", "padded", "unknown"]


def unknown(flow: Flow, node: Node) -> Any:
    """The rule for every operator that has no other: whatever goes in is frozen."""
    return flow.unknown(node, f"the channel analysis has no rule for {flow.operator(node).spelling!r}")


def same(flow: Flow, node: Node) -> Labels:
    """The rule for a function of each element alone: the result has the labels of the first argument."""
    return flow.label(node.args[0])


def made(flow: Flow, node: Node) -> Labels:
    """The rule for ``x.new_zeros(sizes)`` and its like: a new tensor, in which nothing is a channel."""
    return blank(flow.shape(node))


def elementwise(flow: Flow, node: Node) -> Labels:
    """The rule for a function of equal places of several tensors, as in ``a + b``: channels that meet are coupled."""
    labels: Labels | None = None
    given: list[Any] = [each for each in (*node.args, *node.kwargs.values()) if flow.is_tensor(each)]
    for each in sorted(given, key=flow.is_fresh):
        labels = flow.label(each) if labels is None else flow.meet(labels, each, node)
    shape = flow.shape(node)
    return blank(shape) if labels is None else labels.expand(shape)


def move(flow: Flow, node: Node) -> Labels:
    """The rule for an operator that only moves elements: it is applied to the labels of its argument."""
    args, kwargs = map_arg(
        (node.args, node.kwargs), lambda each: flow.values[each] if each in flow.values else flow.label(each)
    )
    return spread(call_operator(node, args, kwargs))


def reshape(flow: Flow, node: Node) -> Any:
    """The rule for ``view``, ``reshape``, ``expand`` and ``unflatten``.

    The labels take the new shape. Every size among the arguments that counts channels is noted, for surgery to correct.
    """
    labels, shape = flow.label(node.args[0]), flow.shape(node)
    name = flow.operator(node).name
    result = spread(labels.expand(shape) if name == "expand" else labels.reshape(shape))
    sizes, where = _sizes(node, 2 if name == "unflatten" else 1)
    if sizes is None:
        flow.literal(node, "shape", where, tuple((result, d) for d in range(result.dim())))
        return result
    if not all(isinstance(size, int | Node) for size in sizes):
        return unknown(flow, node)
    first = flow.argument(node, 1, "dim") % labels.dim() if name == "unflatten" else 0
    for index, size in enumerate(sizes):
        counts = first + index in varying(result) or size in flow.taints
        if counts and (isinstance(size, Node) or size != -1):
            at = (*where[:-1], where[-1] + index)
            flow.literal(node, "size", at, ((result, first + index),))
    return result


def _sizes(node: Node, position: int) -> tuple[Sequence[Any] | None, tuple[Any, ...]]:
    """The sizes among the arguments of a node from ``position`` on, and where the first one stands.

    The sizes are ``None`` if they are one computed value, such as ``y.shape``.
    """
    for key in ("shape", "size", "sizes"):
        if key in node.kwargs:
            listed = _listed(node.kwargs[key])
            return listed, (key,) if listed is None else (key, 0)
    sizes = node.args[position:]
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        return sizes[0], (position, 0)
    whole = len(sizes) == 1 and isinstance(sizes[0], Node) and not isinstance(sizes[0].meta["val"], int)
    return None if whole else sizes, (position,)


def _listed(value: Any) -> Sequence[Any] | None:
    return value if isinstance(value, list | tuple) else None


def reshape_as(flow: Flow, node: Node) -> Labels:
    """The rule for ``x.view_as(y)``: x takes the shape of y, which may lose other channels than x."""
    result = spread(flow.label(node.args[0]).reshape(flow.shape(node)))
    other = flow.label(node.args[1])
    counts = [(each, d) for each in (result, other) for d in range(result.dim())]
    flow.literal(node, "shape of", (1,), tuple(counts))
    return result


def split(flow: Flow, node: Node) -> tuple[Labels, ...]:
    """The rule for ``split`` and ``chunk``: each part has its own channels, so that surgery writes a list of sizes."""
    labels = flow.label(node.args[0])
    dim = flow.argument(node, 2, "dim", 0) % labels.dim()
    parts = torch.split(labels, [int(part.shape[dim]) for part in node.meta["val"]], dim)
    if dim in varying(labels):
        flow.literal(node, "split", (dim,), tuple((part, dim) for part in parts))
        flow.ledger.parts.extend(parts)
    return tuple(spread(part) for part in parts)


def concatenate(flow: Flow, node: Node) -> Any:
    """The rule for ``cat`` and ``stack``: the labels are put together as the tensors are."""
    given: Any = node.args[0] if node.args else node.kwargs["tensors"]
    labels = flow.parts(given) if isinstance(given, Node) else tuple(flow.label(each) for each in given)
    if labels is None:
        return unknown(flow, node)
    shape = flow.shape(node)
    dim = flow.argument(node, 1, "dim", 0) % len(shape)
    if flow.operator(node).name == "stack":
        labels = tuple(each.unsqueeze(dim) for each in labels)
    moving = {dim, *(d for each in labels for d in varying(each))}
    index = tuple(slice(None) if d in moving else slice(0, 1) for d in range(len(shape)))
    return spread(torch.cat([each[index] for each in labels], dim).expand(shape))


def pool(flow: Flow, node: Node) -> Any:
    """The rule for pooling: each channel is pooled alone, over as many axes as the operator's spelling says."""
    return resized(flow, node, flow.operator(node).rank)


def resize(flow: Flow, node: Node) -> Any:
    """The rule for interpolation of (N, C, ...): each channel is resized alone."""
    return resized(flow, node, flow.label(node.args[0]).dim() - 2)


def resized(flow: Flow, node: Node, spatial: int) -> Any:
    """The labels of a tensor whose last ``spatial`` dimensions get another size; channels along these are frozen."""
    if not isinstance(node.meta["val"], Tensor):
        return unknown(flow, node)
    labels = flow.label(node.args[0])
    dims = tuple(range(labels.dim() - spatial, labels.dim()))
    labels = flow.ledger.pin(labels, dims, f"it is pooled or resized over its channels (node {node.name!r})")
    return select_first(labels, dims).expand(flow.shape(node))


def pad(flow: Flow, node: Node) -> Labels:
    """The rule for ``F.pad``."""
    mode = flow.argument(node, 2, "mode", "constant")
    return padded(flow, node, flow.argument(node, 1, "pad"), mode)


def padded(flow: Flow, node: Node, amounts: Sequence[int], mode: str) -> Labels:
    """The labels of a padded tensor; what is added is no channel, and stays.

    ``amounts`` are two for each dimension, the last dimension first, as for ``F.pad``. Along a dimension with channels
    only constants can be added: what is copied from channels would follow other ones once some are gone.
    """
    labels, shape = flow.label(node.args[0]), flow.shape(node)
    pairs = {labels.dim() - 1 - i: (amounts[2 * i], amounts[2 * i + 1]) for i in range(len(amounts) // 2)}
    wrong = tuple(d for d, pair in pairs.items() if any(pair) and (mode != "constant" or min(pair) < 0))
    labels = flow.ledger.pin(labels, wrong, f"it is padded from its own channels (node {node.name!r})")
    amounts = [
        a for d in reversed(range(labels.dim())) for a in (pairs.get(d, (0, 0)) if d in varying(labels) else (0, 0))
    ]
    return spread(F.pad(compact(labels), amounts).expand(shape))


def roll(flow: Flow, node: Node) -> Labels:
    """The rule for a cyclic shift: channels along the shifted dimensions are frozen."""
    labels = flow.label(node.args[0])
    dims = flow.argument(node, 2, "dims") or tuple(range(labels.dim()))
    dims = tuple(d % labels.dim() for d in ((dims,) if isinstance(dims, int) else dims))
    return flow.ledger.pin(labels, dims, f"its channels are rolled (node {node.name!r})")


def shuffle(flow: Flow, node: Node) -> Labels:
    """The rule for ``F.channel_shuffle``: each of its groups keeps the same number of channels."""
    labels = flow.label(node.args[0])
    flow.ledger.remember(labels.unflatten(1, (flow.argument(node, 1, "groups"), -1)))
    return move(flow, node)


def pixel_shuffle(flow: Flow, node: Node) -> Labels:
    """The rule for ``F.pixel_shuffle``: the channels that become the positions of one new channel go together."""
    return as_positions(flow, node, move(flow, node))


def as_positions(flow: Flow, node: Node, labels: Labels) -> Labels:
    """The labels (N, C, H, W) of channels that have become positions, coupled over the last two dimensions."""
    return flow.ledger.pin(labels, (labels.dim() - 2, labels.dim() - 1), f"they become positions (node {node.name!r})")


def glu(flow: Flow, node: Node) -> Labels:
    """The rule for ``F.glu``: one half of the channels is multiplied by the sigmoid of the other half."""
    left, right = flow.label(node.args[0]).chunk(2, flow.argument(node, 1, "dim", -1))
    return flow.combine(left, right, node)


def reduce(flow: Flow, node: Node) -> Any:
    """The rule for a reduction: channels along the dimensions that are reduced over are frozen or coupled.

    ``max`` and ``min`` of two tensors are element-wise.
    """
    name = flow.operator(node).spelling
    if len(node.args) > 1 and flow.is_tensor(node.args[1]):
        return elementwise(flow, node)
    labels, value = flow.label(node.args[0]), node.meta["val"]
    dims = flow.argument(node, 2 if name == "norm" else 1, "dim", flow.argument(node, 99, "axis"))
    dims = range(labels.dim()) if dims is None else (dims,) if isinstance(dims, int) else dims
    dims = tuple(sorted(d % labels.dim() for d in dims))
    labels = flow.ledger.pin(labels, dims, f"{name} is taken over its channels (node {node.name!r})")
    labels = select_first(labels, dims)
    out = value if isinstance(value, Tensor) else value[0]
    if out.dim() < labels.dim():
        labels = labels[tuple(0 if d in dims else slice(None) for d in range(labels.dim()))]
    return labels if isinstance(value, Tensor) else (labels,) * len(value)


def softmax(flow: Flow, node: Node) -> Labels:
    """The rule for softmax and cumulative sums as functions: channels along their dimension are frozen."""
    position = 4 if flow.operator(node).name == "gumbel_softmax" else 1
    return along(flow, node, flow.argument(node, position, "dim"), flow.operator(node).spelling)


def normalize(flow: Flow, node: Node) -> Labels:
    """The rule for ``F.normalize``: division by a norm over channels, to which removed channels add nothing."""
    order = flow.argument(node, 1, "p", 2.0)
    if isinstance(order, int | float) and order > 0:
        return flow.label(node.args[0])
    return along(flow, node, flow.argument(node, 2, "dim", 1), "normalize")


def along(flow: Flow, node: Node, dim: int | None, name: str) -> Labels:
    """The labels after an operation called ``name`` over dimension ``dim`` (over all for ``None``), which must stay."""
    labels = flow.label(node.args[0])
    dims = tuple(range(labels.dim())) if dim is None else (dim % labels.dim(),)
    return flow.ledger.pin(labels, dims, f"{name} is taken over its channels (node {node.name!r})")


# the same for functions, methods and modules
BOTH: dict[str, Rule] = {
    **dict.fromkeys(names_with(Trait.POINTWISE), same),
    **dict.fromkeys(names_with(Trait.POOLING), pool),
    **dict.fromkeys(names_with(Trait.RESIZING), resize),
}

RULES: dict[str, Rule] = {
    **BOTH,
    **INDEXING,
    **dict.fromkeys(names_with(Trait.BROADCAST), elementwise),
    **dict.fromkeys(names_with(Trait.REARRANGEMENT), move),
    **dict.fromkeys(names_with(Trait.REDUCTION), reduce),
    **dict.fromkeys(names_with(Trait.ALONG_AXIS), softmax),
    **dict.fromkeys(("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros"), made),
    **dict.fromkeys(("expand", "reshape", "unflatten"), reshape),
    **dict.fromkeys(("chunk", "split", "tensor_split"), split),
    **dict.fromkeys(("cat", "stack"), concatenate),
    "channel_shuffle": shuffle,
    "glu": glu,
    "normalize": normalize,
    "pad": pad,
    "pixel_shuffle": pixel_shuffle,
    "roll": roll,
    "view_as": reshape_as,
}
