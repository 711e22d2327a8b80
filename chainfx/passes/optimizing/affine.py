"""Scales and shifts that a linear or convolution layer beside them can take over."""

import math

import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from chainfx.ir.graph import Layer, edit, layer_at, operator_of
from chainfx.passes.optimizing.pairs import bias_of, is_shared, plain_obstacle, put_bias

__all__ = ["fold_norms", "fold_scales"]


def fold_norms(graph_module: GraphModule) -> int:
    """Move scale and shift of each layer normalization into the linear layers that read it; returns how many moved.

    ``linear(norm(x) g + h, W, b) = linear(norm(x), W diag(g), W h + b)``, where nothing but linear layers reads the
    normalization, over its last axis. Computed in float64. The normalization keeps its place, without parameters.
    """
    count = 0
    for node in graph_module.graph.find_nodes(op="call_module"):
        norm, layers = _norm(graph_module, node), _readers(graph_module, node)
        if norm is None or not layers or any(plain_obstacle(layer) for layer in layers):
            continue
        scale, shift = norm.weight.detach().double(), norm.bias if isinstance(norm, nn.LayerNorm) else None
        for layer in layers:
            _take_over(layer, scale, None if shift is None else shift.detach().double())
        edit.place_module(graph_module, str(node.target), _without_parameters(norm))
        count += 1
    return count


def _norm(graph_module: GraphModule, node: Node) -> nn.LayerNorm | nn.RMSNorm | None:
    """The normalization over the last axis that a node calls and no other does, if it has parameters."""
    norm = edit.module_of(graph_module, node, nn.LayerNorm) or edit.module_of(graph_module, node, nn.RMSNorm)
    calls = sum(other.target == node.target for other in graph_module.graph.find_nodes(op="call_module"))
    is_free = norm is not None and norm.elementwise_affine and len(norm.normalized_shape) == 1 and calls == 1
    return norm if is_free else None


def _without_parameters(norm: nn.LayerNorm | nn.RMSNorm) -> nn.Module:
    device = norm.weight.device
    plain: nn.Module
    if isinstance(norm, nn.LayerNorm):
        plain = nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False, device=device)
    else:
        plain = nn.RMSNorm(norm.normalized_shape, norm.eps, elementwise_affine=False, device=device)
    return plain.train(norm.training)


def _readers(graph_module: GraphModule, node: Node) -> list[Layer]:
    """The linear layers that read a node, if nothing else does; else none."""
    layers = [layer_at(graph_module, user) for user in node.users]
    linear = [layer for layer in layers if layer is not None and layer.node.target is F.linear]
    only = [layer for layer in linear if layer.node.args[0] is node and layer.node.args.count(node) == 1]
    return only if len(only) == len(node.users) else []


def _take_over(layer: Layer, scale: Tensor, shift: Tensor | None) -> None:
    weight, bias = layer.tensor.detach().double(), bias_of(layer)
    if shift is not None:
        put_bias(layer, weight @ shift + (0 if bias is None else bias))
    edit.set_tensor(layer.graph_module, layer.weight_path, (weight * scale).to(layer.tensor.dtype))


def fold_scales(graph_module: GraphModule) -> int:
    """Move a factor on the output of a layer into the layer; returns how many moved.

    ``s (W x + b) = (s W) x + s b`` for a number ``s``, or a tensor of the network with one value for each output
    channel. Nothing else may read the output. Computed in float64.
    """
    count = 0
    for node in list(graph_module.graph.nodes):
        layer, scale = _scaled(graph_module, node)
        if layer is None or scale is None:
            continue
        weight, bias = layer.tensor.detach().double(), bias_of(layer)
        if bias is not None:
            put_bias(layer, bias * scale)
        by_output = scale if scale.dim() == 0 else scale.reshape(-1, *[1] * (weight.dim() - 1))
        edit.set_tensor(graph_module, layer.weight_path, (weight * by_output).to(layer.tensor.dtype))
        node.replace_all_uses_with(layer.node)
        graph_module.graph.erase_node(node)
        count += 1
    return count


def _scaled(graph_module: GraphModule, node: Node) -> tuple[Layer | None, Tensor | None]:
    """The layer whose output a node multiplies, and the factor (a number or one value an output channel)."""
    name = operator_of(node).name
    if name not in ("mul", "div") or len(node.args) != 2 or node.kwargs:
        return None, None
    sides = list(node.args) if name == "div" else sorted(node.args, key=lambda each: not _is_layer(graph_module, each))
    layer = layer_at(graph_module, sides[0]) if isinstance(sides[0], Node) else None
    if layer is None or layer.transposed or len(layer.node.users) > 1 or plain_obstacle(layer):
        return None, None
    before, after = layer.node.meta["val"], node.meta["val"]
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        return None, None
    factor = _factor(graph_module, layer, sides[1])
    return layer, factor if factor is None or name == "mul" else 1 / factor


def _is_layer(graph_module: GraphModule, value: object) -> bool:
    return isinstance(value, Node) and layer_at(graph_module, value) is not None


def _factor(graph_module: GraphModule, layer: Layer, value: object) -> Tensor | None:
    """A factor as a tensor in float64; ``None`` if it is none that the layer can take over."""
    weight = layer.tensor
    if isinstance(value, int | float) and math.isfinite(value) and value != 0:
        return weight.new_tensor(value).double()
    if not isinstance(value, Node) or value.op != "get_attr" or is_shared(graph_module, value):
        return None
    tensor = edit.get_tensor(graph_module, str(value.target)).detach().double()
    if tensor.dim() == 0:
        return tensor
    channels = weight.shape[0]
    expected = (channels,) if layer.node.target is F.linear else (channels, *[1] * (weight.dim() - 2))
    shape = tuple(tensor.shape)
    return tensor.flatten() if shape in (expected, (1, *expected)) else None
