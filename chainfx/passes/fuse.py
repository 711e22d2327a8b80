"""Folding BatchNorm into the convolution or linear layer before it."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from chainfx.ir.graph import BATCH_NORMS, LAYERS, Layer, affine_of, edit, layer_at, ops
from chainfx.passes.base import Granularity, Kind, Pass, PassContext, PassInfo, PassResult, Skipped

__all__ = ["Fuse"]

_ROUNDING = 16  # by so many units in the last place may a quantized weight differ; its levels lie much further apart


@final
@dataclass(frozen=True)
class Fuse(Pass):
    """Fold each BatchNorm into the convolution or linear layer whose output only it reads.

    What changes::

        y = conv2d(x, weight, bias, ...); z = bn(y)   ->   z = conv2d(x, weight', bias', ...)

    Formula, per output channel (Jacob et al. 2018, arXiv 1712.05877, sec. 3.2): ``s = gamma / sqrt(var + eps)``,
    ``weight' = s weight``, ``bias' = s (bias - mean) + beta``. Equal in eval mode up to rounding (1e-5 in float32); in
    train mode batch statistics are gone, so fold when no more training needs them. Needs nothing. MACs and bit
    operations stay; the BatchNorm's element-wise work and its tensors go.

    A mask stays: zeros times a scale are zeros. A quantizer stays where its levels only scale with the weight, as those
    of ``uniform`` do with one scale a channel; that is looked at, weight by weight. Left alone, with the reason: a
    weight that folding would move to other levels (``dorefa``), one that is shared, an output that something else
    reads, a BatchNorm without running statistics.
    """

    info: ClassVar[PassInfo] = PassInfo(
        "fuse",
        Kind.STATIC,
        Granularity.LAYER,
        revision=2,
        domain="network",
        family="graph-optimization",
        exact=True,
        tunes=False,
    )

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Fold what can be folded; ``skipped`` names every BatchNorm that stays."""
        skipped = []
        count = 0
        for node in list(graph_module.graph.find_nodes(op="call_module")):
            norm = edit.module_of(graph_module, node, _BatchNorm)
            if norm is None:
                continue
            layer = layer_at(graph_module, edit.input_of(node))
            reason = _obstacle(graph_module, node, norm)
            if layer is None or reason:
                skipped.append(Skipped(node.name, reason))
            else:
                _fold(layer, node, norm)
                count += 1
        edit.tidy(graph_module)
        return PassResult(graph_module, modified=count > 0, skipped=tuple(skipped))


def _obstacle(graph_module: GraphModule, node: Node, norm: _BatchNorm) -> str:
    """Why the BatchNorm called by ``node`` cannot be folded; empty if it can."""
    call = edit.input_of(node)
    if type(norm) not in BATCH_NORMS:
        return f"{type(norm).__name__} may do more than a BatchNorm"
    if call.op != "call_function" or call.target not in LAYERS:
        return "what it normalises is not the output of a convolution or linear layer"
    if not norm.track_running_stats:
        return "it has no running statistics"
    if len(call.users) > 1:
        return f"the output of {call.name!r} is also read elsewhere"
    layer = Layer(graph_module, call)
    quantizer = layer.weight_quantizer
    for value in (layer.weight_beneath_mask if quantizer is None else edit.input_of(quantizer), layer.bias_read):
        if isinstance(value, Node) and value.op != "get_attr":
            return f"the weight of {layer.name!r} is computed by {value.name!r} (quantized)"
        if isinstance(value, Node) and _is_shared(graph_module, value):
            return f"the weight {value.target!r} is shared with another layer"
    if sum(other.target == node.target for other in graph_module.graph.find_nodes(op="call_module")) > 1:
        return "the BatchNorm is called more than once"
    if layer.transposed and layer.groups != 1:
        return "a transposed convolution with groups keeps its output channels in two axes"
    if call.target is torch.nn.functional.linear and len(node.meta["val"].shape) > 2:
        return "it normalises another axis than the layer's output features"
    if quantizer is not None and not _levels_scale(layer, quantizer, norm):
        return f"folding would move the weight of {layer.name!r} to other levels of {quantizer.name!r} (quantized)"
    return ""


def _is_shared(graph_module: GraphModule, attribute: Node) -> bool:
    tensor = edit.get_tensor(graph_module, str(attribute.target))
    users = 0
    for node in graph_module.graph.find_nodes(op="get_attr"):
        if edit.get_tensor(graph_module, str(node.target)) is tensor:
            users += len(node.users)
    return users > 1


def _levels_scale(layer: Layer, quantizer: Node, norm: _BatchNorm) -> bool:
    """Whether quantizing the folded weight gives the folded quantized weight, up to rounding."""
    weight = layer.tensor.detach()
    shape = [-1 if dim == layer.out_axis else 1 for dim in range(weight.dim())]
    scale = affine_of(norm)[0].reshape(shape)
    literals: Any = quantizer.args[1:]

    def quantized(values: Tensor) -> Tensor:
        return ops.quantize_weight(values, *literals).double()

    expected, found = quantized(weight) * scale, quantized((weight.double() * scale).to(weight.dtype))
    others = [dim for dim in range(weight.dim()) if dim != layer.out_axis]
    size = expected.abs().amax(dim=others, keepdim=True)
    return bool(((found - expected).abs() <= _ROUNDING * torch.finfo(weight.dtype).eps * size).all())


def _fold(layer: Layer, node: Node, norm: _BatchNorm) -> None:
    graph_module, path, weight = layer.graph_module, layer.weight_path, layer.tensor
    scale, mean, shift = affine_of(norm)
    shape = [-1 if dim == layer.out_axis else 1 for dim in range(weight.dim())]
    bias = None if layer.bias is None else edit.get_tensor(graph_module, str(layer.bias.target))
    folded = scale * ((bias.double() if bias is not None else 0) - mean) + shift
    bias_path = _bias_path(graph_module, path) if layer.bias is None else str(layer.bias.target)
    edit.set_tensor(graph_module, path, (weight.double() * scale.reshape(shape)).to(weight.dtype))
    edit.set_tensor(graph_module, bias_path, folded.to(weight.dtype), parameter=True)
    if bias is None:
        layer.read_bias(bias_path)
    node.replace_all_uses_with(layer.node)
    graph_module.graph.erase_node(node)


def _bias_path(graph_module: GraphModule, weight_path: str) -> str:
    """``conv.bias`` for ``conv.weight``; ``w_bias`` for a bare parameter ``w``."""
    parent, name = edit.parent_of(graph_module, weight_path)
    path = weight_path.removesuffix("weight") + "bias" if name == "weight" else f"{weight_path}_bias"
    taken = getattr(parent, path.rpartition(".")[2], None) is not None
    return f"{path}_folded" if taken else path
