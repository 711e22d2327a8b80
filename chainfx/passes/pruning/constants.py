"""Channels that are constant, and what becomes of them when they are removed.

A channel that is the same for every input, such as one whose BatchNorm has a scale of 0, adds the same to every layer
that reads it. When the channel is removed, this amount is added to the bias of the layer, and nothing changes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _BatchNorm

from chainfx.ir.graph import (
    Layer,
    Trait,
    call_operator,
    edit,
    layer_at,
    layers_of,
    names_with,
    operator_of,
    shape_of,
    value_of,
)
from chainfx.passes.base import Skipped
from chainfx.passes.pruning.weights import Weights

__all__ = ["Constants", "constants_of", "fold_removed", "obstacle"]

_KEEPS = names_with(Trait.KEEPS_CONSTANTS)
_MAPS = names_with(Trait.FOLDABLE)


@dataclass(frozen=True, slots=True, eq=False)
class Constants:
    """The value of every channel along dimension ``axis`` in eval mode, shape (channels,); NaN where it varies."""

    axis: int
    values: Tensor


def constants_of(weights: Weights) -> dict[Node, Constants]:
    """Find the channels that have the same value for every input and at every place, for every node that has some.

    They come from a BatchNorm whose scale is exactly 0 (the channel is its bias) and from filters of zeros, and they
    are followed through element-wise functions, pooling, sums, products, concatenation and flattening. Every node must
    have its shape in ``node.meta["val"]``.
    """
    found: dict[Node, Constants] = {}
    with torch.no_grad():
        for node in weights.graph_module.graph.nodes:
            if node.op == "call_module":
                known = _of_module(weights, node, found)
            elif node.target in edit.LAYERS:
                layer = layer_at(weights.graph_module, node)
                known = None if layer is None else _of_layer(weights, layer)
            else:
                known = _known(weights.graph_module, node, found) if found else None
            if known is not None and not bool(known.values.isnan().all()):
                found[node] = known
    return found


def _known(graph_module: GraphModule, node: Node, found: Mapping[Node, Constants]) -> Constants | None:
    if not node.op.startswith("call") or not node.args:
        return None
    given = _first(node, found)
    name = operator_of(node).name
    if name in ("add", "mul") and len(node.args) == 2 and not node.kwargs:
        return _of_pair(name, node, found)
    if name == "cat":
        return _of_concatenation(node, found)
    if given is None:
        return None
    if name in _KEEPS:
        return given
    if name in _MAPS:
        return _image(given, _mapped(graph_module, node, given.values))
    if name == "flatten" and (*node.args, node.kwargs.get("start_dim"))[1] == 1:
        return _flattened(node, given)
    return given if name == "mean" and _reduces_space(node, given.axis) else None


def _first(node: Node, found: Mapping[Node, Constants]) -> Constants | None:
    return found.get(node.args[0]) if node.args and isinstance(node.args[0], Node) else None


def _image(given: Constants, values: Tensor) -> Constants:
    """What a function makes of the values; what varied still varies, though ``sign(NaN)`` is 0."""
    return Constants(given.axis, torch.where(given.values.isnan(), math.nan, values))


def _of_module(weights: Weights, node: Node, found: Mapping[Node, Constants]) -> Constants | None:
    given = _first(node, found)
    module = weights.modules[str(node.target)]
    if isinstance(module, _BatchNorm):
        return _of_norm(module, given)
    if given is None:
        return None
    name = operator_of(node, weights.modules.__getitem__).name
    if name in _MAPS:
        return _image(given, module(given.values.clone()))
    if isinstance(module, nn.Flatten) and module.start_dim == 1:
        return _flattened(node, given)
    return given if name in _KEEPS else None


def _of_norm(norm: _BatchNorm, given: Constants | None) -> Constants | None:
    scales = norm.weight
    if scales is None or (given is None and bool(scales.all())):  # no scale is 0
        return None
    if norm.running_mean is None or norm.running_var is None:
        return None
    values = torch.full_like(scales, math.nan) if given is None else given.values
    scaled = (values - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * scales + norm.bias
    return Constants(1, torch.where(scales == 0, norm.bias, scaled))


def _of_layer(weights: Weights, layer: Layer) -> Constants | None:
    """The outputs of filters of zeros."""
    if layer.transposed:
        return None
    if layer.weight_read is layer.weight and bool(weights.row_sums(layer.weight_path).all()):  # no filter is of zeros
        return None
    weight = value_of(weights.graph_module, layer.weight_read)
    bias = _value(weights.graph_module, layer.bias_read)
    if bias is None and layer.bias_read is not None:
        return None
    rows = weight.flatten(1)
    dead = rows[:, 0] == 0
    dead[dead.clone()] = ~rows[dead].any(1)
    values = torch.zeros_like(rows[:, 0]) if bias is None else bias
    rank = len(shape_of(layer.node))
    return Constants(rank + 1 - weight.dim(), torch.where(dead, values, math.nan))


def _value(graph_module: GraphModule, argument: Any) -> Tensor | None:
    """The tensor that an argument is, through dialect ops; ``None`` if it is none, or computed otherwise."""
    if not isinstance(argument, Node) or edit.origin(argument) is None:
        return None
    return value_of(graph_module, argument)


def _of_pair(name: str, node: Node, found: Mapping[Node, Constants]) -> Constants | None:
    sides = [found.get(each) if isinstance(each, Node) else each for each in node.args]
    product = name == "mul"
    known = [each for each in sides if isinstance(each, Constants)]
    if not known:
        return None
    number = next((each for each in sides if isinstance(each, int | float)), None)
    if number is not None:
        return Constants(known[0].axis, known[0].values * number if product else known[0].values + number)
    values = [each.meta.get("val") for each in node.args if isinstance(each, Node)]
    ranks = {value.dim() if isinstance(value, Tensor) else None for value in values}
    fits = all(node.meta["val"].shape[each.axis] == len(each.values) for each in known)
    if not fits or len(values) < 2 or len(ranks) > 1 or len({each.axis for each in known}) > 1:
        return None
    if product:
        nothing = torch.stack([each.values == 0 for each in known]).any(0)
        both = known[0].values * known[1].values if len(known) == 2 else torch.full_like(known[0].values, math.nan)
        return Constants(known[0].axis, torch.where(nothing, torch.zeros_like(both), both))
    return None if len(known) < 2 else Constants(known[0].axis, known[0].values + known[1].values)


def _of_concatenation(node: Node, found: Mapping[Node, Constants]) -> Constants | None:
    given: Any = node.args[0] if node.args else node.kwargs.get("tensors")
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    known = [found.get(each) for each in given] if isinstance(given, list | tuple) else [None]
    first = next((each for each in known if each is not None), None)
    if first is None or dim % len(node.meta["val"].shape) != first.axis:
        return None
    parts = [
        _unknown(each.meta["val"].shape[first.axis], first.values) if own is None else own.values
        for each, own in zip(given, known, strict=True)
    ]
    return Constants(first.axis, torch.cat(parts))


def _unknown(channels: int, like: Tensor) -> Tensor:
    """Channels that vary, beside others with values ``like`` these."""
    return torch.full((channels,), math.nan, dtype=like.dtype, device=like.device)


def _mapped(graph_module: GraphModule, node: Node, values: Tensor) -> Tensor:
    """An element-wise call on the values of the channels alone."""
    args = map_arg(node.args[1:], lambda each: _value(graph_module, each))
    kwargs = map_arg(node.kwargs, lambda each: _value(graph_module, each))
    result: Tensor = call_operator(node, (values.clone(), *args), kwargs)
    return result


def _flattened(node: Node, given: Constants) -> Constants | None:
    """(N, C, H, W) -> (N, C * H * W)."""
    if given.axis != 1:
        return None
    return Constants(1, given.values.repeat_interleave(node.meta["val"].shape[1] // len(given.values)))


def _reduces_space(node: Node, axis: int) -> bool:
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    rank = len(shape_of(edit.input_of(node)))
    dims = (dims,) if isinstance(dims, int) else dims
    return dims is not None and all(d % rank > axis for d in dims)


def fold_removed(
    graph_module: GraphModule,
    removed: Mapping[str, NDArray[np.bool_]],
    known: Mapping[Node, Constants],
    means: Mapping[str, Tensor] | None = None,
) -> tuple[tuple[str, ...], tuple[Skipped, ...]]:
    """Add to the biases of layers, in place, what these layers read from channels that are about to be removed.

    ``removed`` says by the path of a weight which positions of its input dimension go, as booleans of shape
    (positions,). A removed channel gives its constant, if it has one; then the change is exact for a linear layer, and
    for a convolution without padding. Else it gives its mean, which ``means`` has by the path of the weight, of shape
    (positions,). A layer without a bias that only a BatchNorm reads takes the amount off the running mean of that
    BatchNorm.

    Returns the names of the layers that were changed, and those for which it could not be done exactly, with the
    reason.
    """
    changed: list[str] = []
    skipped: list[Skipped] = []
    with torch.no_grad():
        for layer in list(layers_of(graph_module)):
            gone = removed.get(layer.weight_path)
            given = _given(layer, gone, known, means) if gone is not None and gone.any() else None
            if given is None:
                continue
            reason = obstacle(layer, exact=means is None)
            if reason:
                number = int((given != 0).sum())
                skipped.append(Skipped(layer.name, f"{number} removed inputs were constants that are lost: {reason}"))
            else:
                _shift(layer, _effect(layer, given))
                changed.append(layer.name)
    return tuple(changed), tuple(skipped)


def _given(
    layer: Layer, gone: NDArray[np.bool_], known: Mapping[Node, Constants], means: Mapping[str, Tensor] | None
) -> Tensor | None:
    """What every input channel of a layer gave that is now missing, shape (channels,); ``None`` if that is nothing."""
    lost = torch.from_numpy(np.tile(gone, layer.groups))
    own = known.get(edit.input_of(layer.node))
    if own is None or len(own.values) != len(lost):
        values = torch.full((len(lost),), math.nan, device=layer.tensor.device)
    else:
        values = own.values.detach().clone()
    if means is not None and (mean := means.get(layer.weight_path)) is not None:
        values = torch.where(values.isnan(), mean.repeat(layer.groups).to(values), values)
    values = values.nan_to_num(0) * lost.to(values)
    return values if bool(values.any()) else None


def obstacle(layer: Layer, *, exact: bool) -> str:
    """The reason why a layer cannot take up a constant in its bias; empty if it can."""
    if layer.transposed:
        return "it is a transposed convolution, whose border differs"
    if exact and _pads(layer):
        return "it pads with zeros, so that they differ at the border"
    if _own_bias(layer) is None and _own_norm(layer) is None:
        return "it has neither a bias of its own nor a BatchNorm after it"
    return ""


def _pads(layer: Layer) -> bool:
    if layer.node.target not in edit.CONVOLUTIONS:
        return False
    padding = layer.options[1]
    if padding == "same":
        return any(size > 1 for size in layer.tensor.shape[2:])
    return padding != "valid" and any((padding,) if isinstance(padding, int) else padding)


def _own_bias(layer: Layer) -> str | None:
    """The path of a layer's bias if nothing else reads it."""
    graph_module, bias = layer.graph_module, layer.bias_read
    if bias is None or bias.op != "get_attr" or len(bias.users) > 1:
        return None
    tensor = edit.get_tensor(graph_module, str(bias.target))
    names = [name for name, each in graph_module.named_parameters(remove_duplicate=False) if each is tensor]
    readers = graph_module.graph.find_nodes(op="get_attr", target=bias.target)
    return str(bias.target) if len(names) == len(readers) == 1 else None


def _own_norm(layer: Layer) -> str | None:
    """The path of the BatchNorm with running statistics that alone reads a layer, if it reads nothing else."""
    graph_module, users = layer.graph_module, layer.node.users
    reader = next(iter(users)) if len(users) == 1 else None
    norm = edit.module_of(graph_module, reader, _BatchNorm)
    calls = graph_module.graph.find_nodes(op="call_module", target=reader.target) if reader is not None else []
    if norm is None or norm.running_mean is None or len(calls) != 1 or reader is None:
        return None
    return str(reader.target)


def _effect(layer: Layer, given: Tensor) -> Tensor:
    """What constant input channels, shape (channels,), add to every output channel, shape (outputs,)."""
    weight = value_of(layer.graph_module, layer.weight_read)
    summed = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    each = summed.view(layer.groups, -1, summed.shape[1]) @ given.to(weight).view(layer.groups, -1, 1)
    return each.flatten()


def _shift(layer: Layer, effect: Tensor) -> None:
    bias = _own_bias(layer)
    path, sign = (bias, 1) if bias is not None else (f"{_own_norm(layer)}.running_mean", -1)
    parent, name = edit.parent_of(layer.graph_module, path)
    old = getattr(parent, name)
    new = old.detach() + sign * effect
    setattr(parent, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
