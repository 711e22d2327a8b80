"""The normal form of layers: all arguments by position, padding in numbers, and a name after the weight."""

import functools
from typing import Any

import torch.nn.functional as F
from torch.fx import Graph, Node

from chainfx.ir.graph import AUGMENTED, DEPTHWISE

__all__ = ["layer_name", "name_after", "new_node", "normal_arguments", "same_padding"]

_ARGUMENTS = {
    "linear": ("input", "weight", "bias"),
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "depthwise": ("input", "weight", "bias", "stride", "padding", "dilation"),
    "transposed": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
}
_KINDS = {"linear": (F.linear,), "conv": DEPTHWISE.keys(), "depthwise": DEPTHWISE.values()}
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0}


def normal_arguments(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a conv or linear call by name, in the order of :mod:`~chainfx.ir.graph.edit`."""
    kind = next((kind for kind, targets in _KINDS.items() if target in targets), "transposed")
    names = _ARGUMENTS[kind]
    given = {**_DEFAULTS, **dict(zip(names, args, strict=False)), **kwargs}
    if kind != "linear":
        rank = int(target.__name__[-2])
        for name in ("stride", "padding", "dilation", "output_padding"):
            given[name] = _tuple_of(given[name], rank)
    return {name: given[name] for name in names}


def layer_name(weight: Any) -> str | None:
    """The name of a layer: the path of its weight, or of what that is computed from, without the last word."""
    while isinstance(weight, Node) and weight.op != "get_attr":
        weight = weight.args[0] if weight.args else None
    if not isinstance(weight, Node):
        return None
    return str(weight.target).removesuffix("weight").removesuffix("folded_").rstrip("._").replace(".", "_") or None


def new_node(
    graph: Graph,
    kind: str,
    target: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name: str | None = None,
    type_expr: Any | None = None,
) -> Node:
    """The node that ``graph.create_node`` makes at the end of the graph, with its arguments set afterwards.

    ``create_node`` looks through the arguments that it is given for symbolic sizes, of which a traced graph has none.
    Without that, a graph that is only counted is captured in 10 % less time.
    """
    node = graph.create_node(kind, target, (), {}, name or name_after(target), type_expr)
    if args:
        node.args = args
    if kwargs:
        node.kwargs = kwargs
    return node


@functools.cache
def name_after(target: Any) -> str:
    """What torch.fx names a node after that calls ``target``; ``x += y`` is named as ``x + y``, which it may become."""
    return Graph()._target_to_str(AUGMENTED.get(target, target))


def _tuple_of(value: Any, rank: int) -> Any:
    if isinstance(value, list | tuple):
        return tuple(value) * rank if len(value) == 1 else tuple(value)
    return (value,) * rank if isinstance(value, int) else value


def same_padding(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The (left, right) zeros of each axis that ``padding="same"`` stands for; the odd one goes right."""
    totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)
