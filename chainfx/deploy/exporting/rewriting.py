"""A network with codes of weights as a graph to export: each quantizer is what a format has for it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from chainfx.deploy.exporting.forms import Form
from chainfx.deploy.exporting.terms import Ranges, round_terms
from chainfx.deploy.integers.chains import chain_of
from chainfx.deploy.integers.grids import decode_weights, grid_of, weight_unit
from chainfx.ir.graph import Layer, affine_of, edit, get_tensor, input_of, layers_of, ops, value_of

__all__ = ["rewrite_for_export"]

_MOST_BITS = 8  # of an activation that has codes of uint8
_GREATEST = 127  # of a weight that has codes of int8
_ROOM = 63  # of a weight whose products with uint8 processors without VNNI can add in pairs


def rewrite_for_export(graph_module: GraphModule, form: Form, ranges: Ranges | None = None) -> None:
    """Replace, in place, each quantizer of a graph in eval mode, with codes of weights, by what a format has for it.

    Weights become int8 codes with their scale. A mask is folded into them, for each grid has a zero in int8, and a
    BatchNorm that follows a layer is folded into the scale of its weight and into its bias, so that runtimes find
    layer and quantizer side by side. Expects shapes in ``node.meta["val"]``. What has no int8 grid stays in
    arithmetic: code books, weights of 8 bits in the scheme ``dorefa``, and activations of more than 8 bits.

    ``ranges``: of the layers whose results are to be rounded before they are added, see
    :func:`~chainfx.deploy.exporting.terms.round_terms`.
    """
    round_terms(graph_module, form, ranges or {})
    work = _Rewriting(graph_module, form)
    for layer in list(layers_of(graph_module)):
        _fold_norm(work, layer)
    edit.drop_unused_nodes(graph_module)
    for target in (ops.mask_weight, ops.dequantize_weight):  # a mask first, else its weight is gone
        for node in graph_module.graph.find_nodes(op="call_function", target=target):
            if _has_codes(node):
                _replace(node, work.decoded(node, node))
            elif target is ops.mask_weight and input_of(node).op == "get_attr":
                _replace(node, work.stored(node, f"masked_{node.name}", value_of(graph_module, node)))
        edit.drop_unused_nodes(graph_module)
    for node in graph_module.graph.find_nodes(op="call_function", target=ops.quantize_activation):
        _round(work, node)
    edit.tidy(graph_module)


@dataclass
class _Rewriting:
    """A graph at work; ``paths`` has where the codes and the scale of a weight are stored that several calls read."""

    graph_module: GraphModule
    form: Form
    paths: dict[tuple[object, ...], tuple[list[str], int]] = field(default_factory=dict)

    def stored(self, before: Node, name: str, tensor: Tensor) -> Node:
        """A node that reads a new buffer."""
        path = edit.fresh_path(self.graph_module, name)
        edit.set_tensor(self.graph_module, path, tensor.contiguous(), parameter=False)
        return self.read(before, path)

    def read(self, before: Node, path: str) -> Node:
        """A node that reads a stored tensor."""
        with before.graph.inserting_before(before):
            return before.graph.get_attr(path)

    def decoded(self, weight: Node, before: Node, factor: Tensor | None = None) -> Node:
        """A new node that decodes a weight from int8, its output channels (axis 0) times ``factor`` (C,)."""
        key = (_what_is_read(weight), None if factor is None else before)
        if key not in self.paths:
            codes, scale, axis = _int8_weight(self.graph_module, weight, factor)
            tensors = {"codes": codes, "scale": scale}
            if self.form.literal:
                scale = scale.expand(codes.shape[axis])
                tensors |= {"scale": scale, "zeros": torch.zeros_like(scale, dtype=torch.int32)}
            nodes = [self.stored(before, f"{name}_{weight.name}", tensor) for name, tensor in tensors.items()]
            self.paths[key] = [str(node.target) for node in nodes], axis
        else:
            nodes = [self.read(before, path) for path in self.paths[key][0]]
        with before.graph.inserting_before(before):
            return before.graph.call_function(self.form.decode, (*nodes[:2], self.paths[key][1], *nodes[2:]))


def _has_codes(weight: Node) -> bool:
    """Whether a node is a weight that is decoded from stored codes with an int8 grid, below a stored mask or not."""
    if weight.target is ops.mask_weight:
        return input_of(weight, 1).op == "get_attr" and _has_codes(input_of(weight))
    if weight.target is not ops.dequantize_weight or any(each.op != "get_attr" for each in weight.all_input_nodes):
        return False
    bits, scheme = weight.args[2:]
    return ops.weight_range(bits, scheme) <= _GREATEST  # type: ignore[arg-type]  # literals of the dialect op


def _what_is_read(weight: Node) -> tuple[object, ...]:
    """What tells apart weights that are computed from stored tensors: functions, paths and literals."""
    return (weight.target, *(_what_is_read(each) if isinstance(each, Node) else each for each in weight.args))


def _int8_weight(graph_module: GraphModule, weight: Node, factor: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """The int8 codes of a weight, their scale (C,), or () for one, and the axis of the scale.

    Codes of few bits are stretched to use the range of int8, which changes no value: runtimes round a bias to multiples
    of the scales of input and weight, and these must not be coarse.
    """
    masked = weight.target is ops.mask_weight
    coded = input_of(weight) if masked else weight
    literals: tuple[Any, ...] = coded.args[2:]
    codes, stored = (get_tensor(graph_module, str(input_of(coded, at).target)).detach() for at in (0, 1))
    stretch = max(1, _ROOM // ops.weight_range(*literals))
    integers = decode_weights(codes, *literals) * stretch
    scale = weight_unit(stored, *literals) / stretch
    if masked:
        integers = integers * value_of(graph_module, input_of(weight, 1))
    axis = next((dim for dim, size in enumerate(scale.shape) if size > 1), 0)
    scale = scale.reshape(-1) if scale.numel() > 1 else scale.reshape(())
    if factor is not None:  # the grid is symmetric, so a sign goes into the codes
        integers = integers * factor.sign().to(torch.int8).reshape(-1, *[1] * (integers.dim() - 1))
        scale = scale * torch.where(factor == 0, 1.0, factor.abs())  # runtimes divide by it
    return integers, scale.to(stored.dtype), axis


def _fold_norm(work: _Rewriting, layer: Layer) -> None:
    """Take the BatchNorm behind a layer with codes into its weight and its bias."""
    chain = chain_of(layer, set())
    computed_bias = layer.bias_read is not layer.bias
    if chain.norm is None or layer.transposed or computed_bias or not _has_codes(layer.weight_read):
        return
    scale = get_tensor(work.graph_module, str(input_of(layer.weight_beneath_mask, 1).target))
    if scale.dim() and scale.numel() != scale.shape[0]:  # not one for each output channel
        return
    factor, mean, beta = affine_of(chain.norm)
    bias = 0.0 if layer.bias is None else value_of(work.graph_module, layer.bias).double()
    shift = (factor * (bias - mean) + beta).to(chain.norm.running_mean.dtype)  # type: ignore[union-attr]  # it has statistics
    norm = chain.nodes[1]
    layer.node.update_arg(1, work.decoded(layer.weight_read, layer.node, factor))
    layer.node.update_arg(2, work.stored(layer.node, f"bias_{layer.name}", shift))
    _replace(norm, layer.node)


def _round(work: _Rewriting, quantizer: Node) -> None:
    """Put the form of the format in the place of what quantizes an activation."""
    values, _, bits, _ = quantizer.args
    if bits > _MOST_BITS:  # type: ignore[operator]  # a literal of the dialect op
        quantizer.target = ops.round_activation
        return
    grid = grid_of(work.graph_module, quantizer)
    numbers: tuple[Any, Any] = grid.scale, grid.zero_point
    if not work.form.literal:
        clip = get_tensor(work.graph_module, str(input_of(quantizer, 1).target)).detach()
        numbers = (
            work.stored(quantizer, f"scale_{quantizer.name}", clip.new_tensor(grid.scale)),
            work.stored(quantizer, f"zero_{quantizer.name}", clip.new_tensor(grid.zero_point, dtype=torch.uint8)),
        )
    with quantizer.graph.inserting_before(quantizer):
        made = quantizer.graph.call_function(work.form.round, (values, *numbers, grid.greatest, grid.signs))
    _replace(quantizer, made)


def _replace(node: Node, other: Node) -> None:
    other.meta = dict(node.meta)
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)
