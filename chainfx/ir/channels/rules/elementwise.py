"""What each operator without parameters does to channels: views move labels, arithmetic couples them, sums end them.

A rule gets the :class:`~chainfx.ir.channels.walk.Flow` and a node and returns the node's labels. An operator without a
rule freezes whatever goes into it.
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
from chainfx.ir.channels.walk import Flow, Rule, operator_name
from chainfx.ir.graph import function_of

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
    given: list[Any] = [each for each in (*node.args, *node.kwargs.values()) if flow.is_tensor(each)]
    for each in sorted(given, key=flow.is_fresh):
        labels = flow.label(each) if labels is None else flow.meet(labels, each, node)
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
    return spread(function_of(node)(first, *rest, **kwargs))


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


def concatenate(flow: Flow, node: Node) -> Labels:
    """``cat`` and ``stack``."""
    given: Any = node.args[0] if node.args else node.kwargs["tensors"]
    labels = flow.parts(given) if isinstance(given, Node) else tuple(flow.label(each) for each in given)
    if labels is None:
        return unknown(flow, node)  # type: ignore[no-any-return]  # labels of the one output
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
    return spread(F.pad(compact(labels), amounts).expand(shape))


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
    **INDEXING,
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
    **dict.fromkeys(("split", "chunk", "tensor_split"), split),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), concatenate),
    "channel_shuffle": shuffle,
    "normalize": normalize,
    "glu": glu,
    "pad": pad,
    "pixel_shuffle": pixel_shuffle,
    "roll": roll,
}
