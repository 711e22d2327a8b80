"""Two layers with nothing between them are one layer."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from chainfx.ir.graph import Layer, Skipped, edit, layer_at, layers_of, shape_of

__all__ = ["merge_pairs", "pairs_left_alone"]


@dataclass(frozen=True, slots=True)
class _Pair:
    """A layer and the one that reads nothing but its output."""

    first: Layer
    second: Layer

    def obstacle(self) -> str:
        """Why the two cannot be one; empty if they can."""
        first, second = self.first, self.second
        if len(first.node.users) > 1:
            return f"the output of {first.name!r} is also read elsewhere"
        for layer in (first, second):
            reason = plain_obstacle(layer)
            if reason:
                return reason
        if first.node.target is not second.node.target or first.groups != 1 or second.groups != 1:
            return f"{first.name!r} is a layer of another kind, or has groups"
        if first.node.target is not F.linear:
            reason = self._obstacle_of_convolutions()
            if reason:
                return reason
        cheaper = self._macs_merged() < self._macs()
        return "" if cheaper else f"one layer in place of it and {first.name!r} would cost as much or more"

    def _obstacle_of_convolutions(self) -> str:
        first, second = self.first, self.second
        if not all(isinstance(each, tuple) for layer in (first, second) for each in layer.options[:3]):
            return "its padding is not given in numbers"
        if _is_point(second):
            return "" if not any(second.options[1]) else "a convolution of 1x1 with padding sees zeros, not a bias"
        if not _is_point(first) or any(step != 1 for step in first.options[0]) or any(first.options[1]):
            return "neither of the two has a kernel of one position, without stride and padding"
        if first.bias is not None and any(second.options[1]):
            return "its padding sees zeros, not the bias of the layer before it"
        return ""

    def _macs(self) -> int:
        return sum(layer.tensor.numel() * _positions(layer) for layer in (self.first, self.second))

    def _macs_merged(self) -> int:
        outputs, inputs = self.second.tensor.shape[0], self.first.tensor.shape[1]
        kernel = math.prod(self.first.tensor.shape[2:]) * math.prod(self.second.tensor.shape[2:])
        return outputs * inputs * kernel * _positions(self.second)


def merge_pairs(graph_module: GraphModule) -> int:
    """Make one layer of two where that is exact and costs less; returns how many pairs went.

    Of linear layers, and of a k x k convolution and a 1x1 one after it (without padding), the weights are multiplied:
    ``W[o, i, k, l] = sum_m W2[o, m] W1[m, i, k, l]``, ``b = W2 b1 + b2``. Of a 1x1 convolution and a k x k one after it
    too, ``W[o, i, k, l] = sum_m W2[o, m, k, l] W1[m, i]``, if the first has neither stride nor padding, and either the
    first has no bias or the second no padding: padding puts zeros where the first layer would give its bias. Computed
    in float64.
    """
    count = 0
    for pair in _pairs(graph_module):
        if not pair.obstacle():
            _merge(graph_module, pair)
            count += 1
    return count


def pairs_left_alone(graph_module: GraphModule) -> list[Skipped]:
    """The layers that come right after another one and stay, with the reason."""
    return [Skipped(pair.second.name, f"not merged: {pair.obstacle()}") for pair in _pairs(graph_module)]


def plain_obstacle(layer: Layer) -> str:
    """Why the weight of a layer must stay as it is: quantized, masked or shared; empty if it can be changed."""
    graph_module = layer.graph_module
    if layer.weight_read.op != "get_attr" or layer.input_quantizer is not None:
        return f"{layer.name!r} is quantized or masked"
    values = [layer.weight, *([layer.bias] if layer.bias is not None else [])]
    if any(value.op != "get_attr" or is_shared(graph_module, value) for value in values):
        return f"a tensor of {layer.name!r} is also read elsewhere, or computed"
    return ""


def is_shared(graph_module: GraphModule, attribute: Node) -> bool:
    """Whether more than one node reads the tensor of a ``get_attr`` node."""
    tensor = edit.get_tensor(graph_module, str(attribute.target))
    same = (
        node
        for node in graph_module.graph.find_nodes(op="get_attr")
        if getattr(*edit.parent_of(graph_module, str(node.target)), None) is tensor
    )
    return sum(len(node.users) for node in same) > 1


def _pairs(graph_module: GraphModule) -> Iterator[_Pair]:
    for second in list(layers_of(graph_module)):
        source = second.node.args[0]
        first = layer_at(graph_module, source) if isinstance(source, Node) else None
        if first is not None:
            yield _Pair(first, second)


def _is_point(layer: Layer) -> bool:
    """Whether the kernel of a convolution has one position."""
    return math.prod(layer.tensor.shape[2:]) == 1


def _positions(layer: Layer) -> int:
    """How often a layer applies its weight in the batch."""
    shape = shape_of(layer.node)
    return math.prod(shape) // layer.tensor.shape[0]


def _merge(graph_module: GraphModule, pair: _Pair) -> None:
    first, second = pair.first, pair.second
    one, two = first.tensor.detach().double(), second.tensor.detach().double()
    if first.node.target is not F.linear and not _is_point(second):
        weight, options = torch.einsum("om...,mi->oi...", two, one.flatten(1)), second.options
    else:
        weight, options = torch.einsum("om,mi...->oi...", two.flatten(1), one), first.options
        if options:
            strides = tuple(a * b for a, b in zip(options[0], second.options[0], strict=True))
            options = (strides, *options[1:])
    bias = _bias(graph_module, pair, two)
    edit.set_tensor(graph_module, second.weight_path, weight.to(second.tensor.dtype))
    second.read_input(edit.input_of(first.node))
    second.node.args = (*second.node.args[:3], *options)
    if bias is not None:
        put_bias(second, bias)
    second.weight.meta["val"] = second.tensor.to("meta")
    graph_module.graph.erase_node(first.node)


def _bias(graph_module: GraphModule, pair: _Pair, weight: Tensor) -> Tensor | None:
    """The bias of both layers together in float64; ``None`` if neither has one."""
    first, second = (bias_of(layer) for layer in (pair.first, pair.second))
    if first is None:
        return second
    carried = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    return carried @ first + (0 if second is None else second)


def bias_of(layer: Layer) -> Tensor | None:
    """The bias of a layer in float64; ``None`` if it has none."""
    if layer.bias is None:
        return None
    return edit.get_tensor(layer.graph_module, str(layer.bias.target)).detach().double()


def put_bias(layer: Layer, value: Tensor) -> None:
    """Give a layer a bias, in the place of its own if it has one."""
    graph_module, path = layer.graph_module, layer.weight_path
    if layer.bias is not None:
        edit.set_tensor(graph_module, str(layer.bias.target), value.to(layer.tensor.dtype))
        return
    prefix = path.removesuffix("weight") + "bias" if path.endswith(".weight") else f"{path}_bias"
    parent, name = edit.parent_of(graph_module, prefix)
    taken = getattr(parent, name, None) is not None
    edit.set_tensor(graph_module, f"{prefix}_added" if taken else prefix, value.to(layer.tensor.dtype), parameter=True)
    layer.read_bias(f"{prefix}_added" if taken else prefix)
