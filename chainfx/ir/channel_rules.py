"""What each operator without parameters does to channels: views move labels, arithmetic couples them, sums end them.

A rule gets the :class:`~chainfx.ir.channel_flow.Flow` and a node and returns the node's labels. An operator without a
rule freezes whatever goes into it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from chainfx.ir.channel_flow import Flow, Rule, operator_name
from chainfx.ir.channel_labels import Labels, blank, compact, select_first, spread, varying
from chainfx.ir.edit import get_tensor

__all__ = ["RULES", "along", "padded", "resized", "same", "unknown"]

SAME = """identity contiguous clone detach to type type_as float double half bfloat16 zeros_like ones_like full_like
    empty_like rand_like randn_like bernoulli dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout
    relu relu6 silu gelu sigmoid tanh hardswish hardsigmoid hardtanh leaky_relu elu selu celu mish softplus softsign
    logsigmoid tanhshrink hardshrink softshrink threshold rrelu exp expm1 log log1p log2 sqrt rsqrt neg abs sign square
    reciprocal sin cos erf floor ceil round trunc isnan isinf nan_to_num logical_not requires_grad_ positive pos data
    stochastic_depth zero fill"""
ELEMENTWISE = """add iadd radd sub isub rsub mul imul rmul multiply subtract div idiv itruediv truediv divide floordiv
    floor_divide true_divide pow ipow remainder fmod mod where maximum minimum clamp clamp_min clamp_max clip lerp
    addcmul addcdiv masked_fill atan2 eq ne lt le gt ge logical_and logical_or logical_xor and or xor expand_as
    quantize_activation"""
MOVES = """permute transpose swapaxes swapdims movedim moveaxis unsqueeze squeeze flatten ravel t T mT flip repeat tile
    repeat_interleave pixel_unshuffle"""
REDUCTIONS = "mean sum amax amin max min std var prod norm logsumexp argmax argmin any all nanmean median count_nonzero"
SOFTMAX = "softmax log_softmax softmin cumsum cumprod gumbel_softmax"
FACTORIES = "new_zeros new_ones new_full new_empty new_tensor"
RESIZES = "interpolate upsample upsample_nearest upsample_bilinear"
POOLS = [f"{kind}_pool{n}d" for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)]


def unknown(flow: Flow, node: Node) -> Any:
    """Anything without a rule."""
    name = operator_name(node) or getattr(node.target, "__name__", str(node.target))
    return flow.unknown(node, f"the channel analysis has no rule for {name!r}")


def same(flow: Flow, node: Node) -> Labels:
    """A function of each element alone."""
    return flow.label(node.args[0])


def made(flow: Flow, node: Node) -> Labels:
    """A new tensor of given sizes, of the kind of another one."""
    return blank(flow.shape(node))


def elementwise(flow: Flow, node: Node) -> Labels:
    """A function of equal positions of several tensors."""
    labels: Labels | None = None
    for each in [*node.args, *node.kwargs.values()]:
        if flow.is_tensor(each):
            labels = flow.label(each) if labels is None else flow.combine(labels, flow.label(each), node)
    shape = flow.shape(node)
    return blank(shape) if labels is None else labels.expand(shape)


def move(flow: Flow, node: Node) -> Labels:
    """A view or copy: the labels go through the very same function."""
    labels = map_arg(
        (node.args, node.kwargs), lambda each: flow.values[each] if each in flow.values else flow.label(each)
    )
    (first, *rest), kwargs = labels
    if node.op == "call_method":
        return spread(getattr(first, str(node.target))(*rest, **kwargs))
    return spread(node.target(first, *rest, **kwargs))  # type: ignore[operator]


def reshape(flow: Flow, node: Node) -> Any:
    """``view``, ``reshape``, ``expand`` and ``unflatten``: move, and note the sizes that count channels."""
    labels, shape = flow.label(node.args[0]), flow.shape(node)
    name = operator_name(node)
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
    """The sizes in the arguments of a node, and the path of the first; ``None`` if they are one computed value."""
    for key in ("shape", "size", "sizes"):
        if key in node.kwargs:
            return (node.kwargs[key], (key, 0)) if isinstance(node.kwargs[key], list | tuple) else (None, (key,))
    if len(node.args) > position and isinstance(node.args[position], list | tuple):
        return node.args[position], (position, 0)
    sizes = node.args[position:]
    whole = len(sizes) == 1 and isinstance(sizes[0], Node) and not isinstance(sizes[0].meta["val"], int)
    return (None if whole else sizes), (position,)


def reshape_as(flow: Flow, node: Node) -> Labels:
    """``reshape_as`` and ``view_as``: the shape is that of another tensor, which loses the same channels or others."""
    result = spread(flow.label(node.args[0]).reshape(flow.shape(node)))
    other = flow.label(node.args[1])
    counts = [(each, d) for each in (result, other) for d in range(result.dim())]
    flow.literal(node, "shape of", (1,), tuple(counts))
    return result


def split(flow: Flow, node: Node) -> tuple[Labels, ...]:
    """``split`` and ``chunk``: the parts keep their own channels, so the sizes become a list."""
    labels = flow.label(node.args[0])
    dim = flow.argument(node, 2, "dim", 0) % labels.dim()
    parts = torch.split(labels, [int(part.shape[dim]) for part in node.meta["val"]], dim)
    if dim in varying(labels):
        flow.literal(node, "split", (dim,), tuple((part, dim) for part in parts))
        flow.ledger.parts.extend(parts)
    return tuple(spread(part) for part in parts)


def unbind(flow: Flow, node: Node) -> Any:
    """``unbind`` and ``select``: indices along the dimension stay."""
    labels = flow.label(node.args[0])
    dim = flow.argument(node, 1, "dim", 0) % labels.dim()
    labels = flow.ledger.pin(labels, (dim,), f"it is indexed by position (node {node.name!r})")
    if operator_name(node) == "select":
        return spread(labels.select(dim, 0))
    return tuple(spread(part) for part in labels.unbind(dim))


def getitem(flow: Flow, node: Node) -> Any:
    """Indexing: slices of channels are counted, single indices stay."""
    parts = flow.parts(node.args[0])
    if parts is not None:
        return parts[flow.argument(node, 1, "index")]
    selected = _selected(flow, node, node.args[1])
    if selected is not None:
        return selected
    found = _indexed(flow, node, node.args[1], (1,))
    return flow.unknown(node, "it is indexed by a truth value") if found is None else spread(found)


def _selected(flow: Flow, node: Node, raw: Any) -> Labels | None:
    """The labels of ``x[:, order]``; ``None`` if ``raw`` is no constant selection of channels."""
    items = list(raw) if isinstance(raw, tuple) else [raw]
    last = items[-1]
    if all(item == slice(None) for item in items[:-1]) and len(items) - 1 in varying(flow.label(node.args[0])):
        return _at(flow, node, last, len(items) - 1)
    return None


def _at(flow: Flow, node: Node, index: Any, dim: int) -> Labels | None:
    """The labels at positions along ``dim`` that a tensor of the network holds; ``None`` for other positions."""
    if not isinstance(index, Node) or index.op != "get_attr":
        return None
    positions = get_tensor(flow.graph_module, flow.path(index))
    if positions.dim() != 1 or positions.is_meta or positions.dtype not in (torch.int64, torch.int32):
        return None
    labels = flow.ledger.select(flow.path(index), positions.cpu(), flow.label(node.args[0]), dim)
    return labels.expand(flow.shape(node))


def assign(flow: Flow, node: Node) -> Any:
    """``tensor[index] = value``: the part that is assigned to meets the value."""
    part = _indexed(flow, node, node.args[1], (1,))
    if part is None:
        return flow.unknown(node, "it is indexed by a truth value")
    if flow.is_tensor(node.args[2]):
        flow.combine(part, flow.label(node.args[2]), node)
    return flow.label(node.args[0])


def _indexed(flow: Flow, node: Node, raw: Any, where: tuple[int, ...]) -> Labels | None:
    """The labels of the indexed part of the first argument; ``None`` if its size depends on the data."""
    labels = flow.label(node.args[0])
    items = list(raw) if isinstance(raw, tuple) else [raw]
    items = [_item(flow, item) for item in items]
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


def _item(flow: Flow, item: Any) -> Any:
    """One item of an index: a tensor of positions becomes one that picks the first everywhere."""
    item = map_arg(item, lambda node: flow.values.get(node, node))
    shape = item.meta["val"].shape if isinstance(item, Node) else None
    if isinstance(item, Node) and item.meta["val"].dtype is torch.bool:
        return True
    if isinstance(item, list):
        shape = torch.Size([len(item)])
    return item if shape is None else torch.zeros((), dtype=torch.int64).expand(shape)


def _along(flow: Flow, node: Node, labels: Labels, dim: int, item: Any, where: tuple[int, ...]) -> Labels:
    """The labels ready for being indexed with one item along one dimension."""
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
    """Every ``step``-th channel: as many neighbours go together, so that it stays every ``step``-th of what is kept."""
    start, stop, step = bounds
    size = labels.size(dim)
    if start >= step or stop < size or size % step:
        return flow.ledger.pin(labels, (dim,), reason)
    blocks = flow.ledger.pin(labels.unflatten(dim, (-1, step)), (dim + 1,), reason)
    return blocks.flatten(dim, dim + 1)


def look_up(flow: Flow, node: Node) -> Labels:
    """``index_select``, ``gather``: positions along one dimension are looked up, so they stay."""
    labels = flow.label(node.args[0])
    dim = flow.argument(node, 2 if operator_name(node) == "take_along_dim" else 1, "dim") % labels.dim()
    if operator_name(node) == "index_select" and dim in varying(labels):
        selected = _at(flow, node, flow.raw(node, 2, "index"), dim)
        if selected is not None:
            return selected
    labels = flow.ledger.pin(labels, (dim,), f"it is indexed by position (node {node.name!r})").narrow(dim, 0, 1)
    if operator_name(node) == "index_select":
        return labels.expand(flow.shape(node))
    index = next(each for each in node.all_input_nodes[1:] if flow.is_tensor(each))
    return flow.combine(labels, flow.label(index), node).expand(flow.shape(node))


def concatenate(flow: Flow, node: Node) -> Labels:
    """``cat`` and ``stack``."""
    given: Any = node.args[0] if node.args else node.kwargs["tensors"]
    labels = flow.parts(given) if isinstance(given, Node) else tuple(flow.label(each) for each in given)
    if labels is None:
        return unknown(flow, node)  # type: ignore[no-any-return]
    shape = flow.shape(node)
    dim = flow.argument(node, 1, "dim", 0) % len(shape)
    if operator_name(node) == "stack":
        labels = tuple(each.unsqueeze(dim) for each in labels)
    moving = {dim, *(d for each in labels for d in varying(each))}
    index = tuple(slice(None) if d in moving else slice(0, 1) for d in range(len(shape)))
    return spread(torch.cat([each[index] for each in labels], dim).expand(shape))


def pool(flow: Flow, node: Node) -> Any:
    """Pooling: each channel alone; spatial positions stay."""
    return resized(flow, node, int(operator_name(node)[-2]))


def resize(flow: Flow, node: Node) -> Any:
    """Interpolation of (N, C, ...): each channel alone."""
    return resized(flow, node, flow.label(node.args[0]).dim() - 2)


def resized(flow: Flow, node: Node, spatial: int) -> Any:
    """Each channel alone gets another size in the last ``spatial`` dimensions."""
    if not isinstance(node.meta["val"], Tensor):
        return unknown(flow, node)
    labels = flow.label(node.args[0])
    dims = tuple(range(labels.dim() - spatial, labels.dim()))
    labels = flow.ledger.pin(labels, dims, f"it is pooled or resized over its channels (node {node.name!r})")
    return select_first(labels, dims).expand(flow.shape(node))


def pad(flow: Flow, node: Node) -> Labels:
    """Padding: what is added stays; only constants can be added beside channels."""
    mode = flow.argument(node, 2, "mode", "constant")
    return padded(flow, node, flow.argument(node, 1, "pad"), mode)


def padded(flow: Flow, node: Node, amounts: Sequence[int], mode: str) -> Labels:
    """Padding by ``amounts`` (two for each dimension, the last one first)."""
    labels, shape = flow.label(node.args[0]), flow.shape(node)
    pairs = {labels.dim() - 1 - i: (amounts[2 * i], amounts[2 * i + 1]) for i in range(len(amounts) // 2)}
    wrong = tuple(d for d, pair in pairs.items() if any(pair) and (mode != "constant" or min(pair) < 0))
    labels = flow.ledger.pin(labels, wrong, f"it is padded from its own channels (node {node.name!r})")
    amounts = [
        a for d in reversed(range(labels.dim())) for a in (pairs.get(d, (0, 0)) if d in varying(labels) else (0, 0))
    ]
    return spread(F.pad(compact(labels)[0], amounts).expand(shape))


def roll(flow: Flow, node: Node) -> Labels:
    """A cyclic shift, which keeps positions where the labels do not differ."""
    labels = flow.label(node.args[0])
    dims = flow.argument(node, 2, "dims") or tuple(range(labels.dim()))
    dims = tuple(d % labels.dim() for d in ((dims,) if isinstance(dims, int) else dims))
    return flow.ledger.pin(labels, dims, f"its channels are rolled (node {node.name!r})")


def shuffle(flow: Flow, node: Node) -> Labels:
    """``channel_shuffle``: each of the groups keeps the same number."""
    labels = flow.label(node.args[0])
    flow.ledger.remember(labels.unflatten(1, (flow.argument(node, 1, "groups"), -1)))
    return move(flow, node)


def pixel_shuffle(flow: Flow, node: Node) -> Labels:
    """Channels become positions: those that make the positions of one new channel go together."""
    labels = move(flow, node)
    return flow.ledger.pin(labels, (labels.dim() - 2, labels.dim() - 1), f"they become positions (node {node.name!r})")


def glu(flow: Flow, node: Node) -> Labels:
    """A half gates the other."""
    left, right = flow.label(node.args[0]).chunk(2, flow.argument(node, 1, "dim", -1))
    return flow.combine(left, right, node)


def reduce(flow: Flow, node: Node) -> Any:
    """A reduction: what is reduced over stays."""
    name = operator_name(node)
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
    """An operation along one dimension, which stays."""
    name = operator_name(node)
    return along(flow, node, flow.argument(node, 4 if name == "gumbel_softmax" else 1, "dim"), name)


def normalize(flow: Flow, node: Node) -> Labels:
    """Division by a norm, to which removed channels add nothing."""
    order = flow.argument(node, 1, "p", 2.0)
    if isinstance(order, int | float) and order > 0:
        return flow.label(node.args[0])
    return along(flow, node, flow.argument(node, 2, "dim", 1), "normalize")


def along(flow: Flow, node: Node, dim: int | None, name: str) -> Labels:
    """An operation called ``name`` along one dimension (all for ``None``), which stays."""
    labels = flow.label(node.args[0])
    dims = tuple(range(labels.dim())) if dim is None else (dim % labels.dim(),)
    return flow.ledger.pin(labels, dims, f"{name} is taken over its channels (node {node.name!r})")


RULES: dict[str, Rule] = {
    **dict.fromkeys(SAME.split(), same),
    **dict.fromkeys(ELEMENTWISE.split(), elementwise),
    **dict.fromkeys(MOVES.split(), move),
    **dict.fromkeys(REDUCTIONS.split(), reduce),
    **dict.fromkeys(SOFTMAX.split(), softmax),
    **dict.fromkeys(FACTORIES.split(), made),
    **dict.fromkeys(RESIZES.split(), resize),
    **dict.fromkeys(POOLS, pool),
    **dict.fromkeys(("view", "reshape", "expand", "unflatten"), reshape),
    **dict.fromkeys(("view_as", "reshape_as"), reshape_as),
    **dict.fromkeys(("gather", "index_select", "take_along_dim"), look_up),
    **dict.fromkeys(("split", "chunk", "tensor_split"), split),
    **dict.fromkeys(("unbind", "select"), unbind),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), concatenate),
    "assign": assign,
    "channel_shuffle": shuffle,
    "getitem": getitem,
    "normalize": normalize,
    "glu": glu,
    "pad": pad,
    "pixel_shuffle": pixel_shuffle,
    "roll": roll,
}
