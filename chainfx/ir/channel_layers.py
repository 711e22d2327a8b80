"""What layers, normalizations and modules do to channels: they take them in, scale them, and make new ones."""

import re
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _NormBase

from chainfx.ir import ops
from chainfx.ir.channel_flow import Flow, Rule, operator_name
from chainfx.ir.channel_labels import Labels, spread
from chainfx.ir.channel_rules import RULES, along, normalized, padded, resized, same, unknown
from chainfx.ir.edit import LAYERS, TRANSPOSED, groups_of, is_dialect, origin

__all__ = ["rule_of"]

_SCALES = ("running_mean", "running_var", "weight", "bias")
_ACTIVATIONS = """Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout ReLU ReLU6 SiLU GELU
    Sigmoid Tanh Hardswish Hardsigmoid Hardtanh LeakyReLU ELU SELU CELU Mish Softplus Softsign LogSigmoid Tanhshrink
    Hardshrink Softshrink Threshold RReLU"""
_POOL = re.compile(r"(Adaptive)?(Max|Avg|LP)Pool([123])d")
_PAD = re.compile(r"(Zero|Constant|Reflection|Replication|Circular)Pad[123]d")
_WHY = "a layer reads it beside its channels"


def rule_of(flow: Flow, node: Node) -> Rule:
    """The rule for what a node calls."""
    if node.op == "call_module":
        return _module_rule(flow.graph_module.get_submodule(str(node.target)))
    if node.op == "call_function" and node.target in LAYERS:
        return layer
    return {**RULES, **_PARAMETRIC}.get(operator_name(node), unknown)


def layer(flow: Flow, node: Node) -> Labels:
    """A convolution or linear call in train form."""
    weight = _weight(flow, node)
    if weight is None:
        return flow.unknown(node, "its weight is computed")  # type: ignore[no-any-return]
    path, shape = flow.path(weight), weight.meta["val"].shape
    labels = flow.label(node.args[0])
    axis = labels.dim() - (len(shape) - 1)
    taken = flow.ledger.vector(labels, axis, f"{_WHY} (node {node.name!r})")
    groups = groups_of(node)
    depthwise = groups > 1 and len(taken) == groups
    rule = _transposed if node.target in TRANSPOSED else _plain
    made = (_depthwise if depthwise else rule)(flow, node, path, shape, taken, groups)
    _bias(flow, node, made)
    return made.view(-1, *[1] * (labels.dim() - axis - 1)).expand(flow.shape(node))


def _weight(flow: Flow, node: Node) -> Node | None:
    """The parameter that a layer's weight is, through quantizers; ``None`` if other ops are in between."""
    if len(node.args) < 3 or node.kwargs:
        return None
    weight = node.args[1]
    while isinstance(weight, Node) and is_dialect(weight):
        if weight.target is not ops.quantize_weight:
            return None
        weight = weight.args[0]
    return origin(weight)


def _plain(flow: Flow, node: Node, path: str, shape: torch.Size, taken: Labels, groups: int) -> Labels:
    """Weight (out, in / groups, ...). All groups lose the same relative positions."""
    flow.ledger.register(path, 1, _over_groups(flow, node, taken, groups))
    made = flow.ledger.source(node.name, path, 0, shape[0])
    _over_groups(flow, node, made, groups)
    return made


def _transposed(flow: Flow, node: Node, path: str, shape: torch.Size, taken: Labels, groups: int) -> Labels:
    """Weight (in, out / groups, ...). All groups lose the same relative positions."""
    _over_groups(flow, node, taken, groups)
    flow.ledger.register(path, 0, taken)
    return flow.ledger.source(node.name, path, 1, shape[1]).repeat(groups)


def _depthwise(flow: Flow, node: Node, path: str, shape: torch.Size, taken: Labels, groups: int) -> Labels:
    """One input channel a group: the outputs of a group go with its input, and ``groups`` is the number of inputs."""
    flow.literal(node, "size", (6,), ((taken, 0),))
    if node.target in TRANSPOSED:
        flow.ledger.register(path, 0, taken)
        return taken.repeat_interleave(shape[1])
    made = flow.ledger.source(node.name, path, 0, shape[0])
    each = taken.repeat_interleave(shape[0] // groups)
    flow.ledger.couple(made, each, f"it goes with input channels that must stay (node {node.name!r})")
    return made


def _over_groups(flow: Flow, node: Node, labels: Labels, groups: int) -> Labels:
    """Couple equal relative positions of the groups; returns the labels of the first group."""
    table = labels.view(groups, -1)
    flow.ledger.couple(table, table[:1].expand_as(table), f"its groups must stay equal (node {node.name!r})")
    return table[0]


def _bias(flow: Flow, node: Node, made: Labels) -> None:
    bias = node.args[2]
    if isinstance(bias, Node) and bias.op == "get_attr":
        flow.ledger.register(flow.path(bias), 0, made)
    elif bias is not None:
        flow.freeze(made, node, "its bias is computed")


def batch_norm(flow: Flow, node: Node) -> Labels:
    """``F.batch_norm`` and ``F.instance_norm``: each channel alone, with its own parameters."""
    labels, vector = _channels(flow, node)
    for position, name in enumerate(_SCALES, start=1):
        tensor = node.args[position] if len(node.args) > position else node.kwargs.get(name)
        if isinstance(tensor, Node) and tensor.op == "get_attr":
            flow.ledger.register(flow.path(tensor), 0, vector)
        elif tensor is not None:
            flow.freeze(labels, node, "its normalization has computed parameters")
    return labels


def prelu(flow: Flow, node: Node) -> Labels:
    """``F.prelu``: one slope, or one for each channel."""
    labels, vector = _channels(flow, node)
    slope = node.args[1]
    if isinstance(slope, Node) and slope.op == "get_attr":
        if slope.meta["val"].numel() > 1:
            flow.ledger.register(flow.path(slope), 0, vector)
        return labels
    return flow.unknown(node, "its slope is computed")  # type: ignore[no-any-return]


def _channels(flow: Flow, node: Node) -> tuple[Labels, Labels]:
    """The labels of (N, C, ...) pinned beside the channels, and those of the channels alone."""
    labels = flow.label(node.args[0])
    vector = flow.ledger.vector(labels, 1, f"{_WHY} (node {node.name!r})")
    return vector.view(-1, *[1] * (labels.dim() - 2)).expand(labels.shape), vector


def exit_point(flow: Flow, node: Node) -> Labels:
    """The logits of an exit are an output of the network."""
    flow.freeze(flow.label(node.args[0]), node, "it is the answer of an exit")
    return flow.label(node.args[0])


_PARAMETRIC: dict[str, Rule] = {
    "batch_norm": batch_norm,
    "instance_norm": batch_norm,
    "prelu": prelu,
    "exit_point": exit_point,
}


def _module_rule(module: nn.Module) -> Rule:
    """The rule of a module: of torch.nn itself by name, of subclasses only for batch and instance normalization."""
    names = {name for name, _ in module.named_parameters()}
    if isinstance(module, _NormBase) and names <= {"weight", "bias"}:
        return _norm_module
    if not type(module).__module__.startswith("torch.nn."):
        return _opaque
    kind = type(module).__name__
    if kind in _ACTIVATIONS.split():
        return same
    if _POOL.fullmatch(kind):
        return _pool_module
    return _padding_module if _PAD.fullmatch(kind) else _MODULES.get(kind, _opaque)


def _module(flow: Flow, node: Node) -> Any:
    return flow.graph_module.get_submodule(str(node.target))


def _opaque(flow: Flow, node: Node) -> Any:
    return flow.unknown(node, f"the inside of module {type(_module(flow, node)).__name__} is not visible")


def _norm_module(flow: Flow, node: Node) -> Labels:
    labels, vector = _channels(flow, node)
    for name in _SCALES:
        if getattr(_module(flow, node), name, None) is not None:
            flow.ledger.register(flow.module_path(node, name), 0, vector)
    flow.literal(node, "attribute", ("num_features",), ((vector, 0),))
    return labels


def _prelu_module(flow: Flow, node: Node) -> Labels:
    if _module(flow, node).num_parameters == 1:
        return flow.label(node.args[0])
    labels, vector = _channels(flow, node)
    flow.ledger.register(flow.module_path(node, "weight"), 0, vector)
    flow.literal(node, "attribute", ("num_parameters",), ((vector, 0),))
    return labels


def _embedding_module(flow: Flow, node: Node) -> Labels:
    size = _module(flow, node).embedding_dim
    atoms = flow.ledger.source(node.name, flow.module_path(node, "weight"), 1, size)
    flow.literal(node, "attribute", ("embedding_dim",), ((atoms, 0),))
    return atoms.expand(flow.shape(node))


def _pool_module(flow: Flow, node: Node) -> Any:
    return resized(flow, node, int(type(_module(flow, node)).__name__[-2]))


def _upsample_module(flow: Flow, node: Node) -> Any:
    return resized(flow, node, flow.label(node.args[0]).dim() - 2)


def _padding_module(flow: Flow, node: Node) -> Labels:
    module = _module(flow, node)
    mode = "constant" if type(module).__name__.startswith(("Zero", "Constant")) else "other"
    return padded(flow, node, module.padding, mode)


def _moving_module(flow: Flow, node: Node) -> Labels:
    return spread(_module(flow, node)(flow.label(node.args[0])))


def _unflatten_module(flow: Flow, node: Node) -> Labels:
    module = _module(flow, node)
    labels = flow.label(node.args[0])
    labels = flow.ledger.forbid(
        labels, (module.dim % labels.dim(),), f"nn.Unflatten holds its size (node {node.name!r})"
    )
    return labels.reshape(flow.shape(node))


def _channel_shuffle_module(flow: Flow, node: Node) -> Labels:
    flow.ledger.remember(flow.label(node.args[0]).unflatten(1, (_module(flow, node).groups, -1)))
    return _moving_module(flow, node)


def _pixel_shuffle_module(flow: Flow, node: Node) -> Labels:
    labels = _moving_module(flow, node)
    return flow.ledger.pin(labels, (labels.dim() - 2, labels.dim() - 1), f"they become positions (node {node.name!r})")


def _softmax_module(flow: Flow, node: Node) -> Labels:
    module = _module(flow, node)
    return along(flow, node, module.dim, type(module).__name__)


def _softmax2d_module(flow: Flow, node: Node) -> Labels:
    return along(flow, node, -3, "Softmax2d")


def _layer_norm_module(flow: Flow, node: Node) -> Labels:
    return normalized(flow, node, len(_module(flow, node).normalized_shape))


def _group_norm_module(flow: Flow, node: Node) -> Labels:
    return normalized(flow, node, flow.label(node.args[0]).dim())


_MODULES: dict[str, Rule] = {
    "ChannelShuffle": _channel_shuffle_module,
    "Embedding": _embedding_module,
    "Flatten": _moving_module,
    "GroupNorm": _group_norm_module,
    "LayerNorm": _layer_norm_module,
    "LocalResponseNorm": _group_norm_module,
    "LogSoftmax": _softmax_module,
    "PReLU": _prelu_module,
    "PixelShuffle": _pixel_shuffle_module,
    "PixelUnshuffle": _moving_module,
    "RMSNorm": _layer_norm_module,
    "Softmax": _softmax_module,
    "Softmax2d": _softmax2d_module,
    "Softmin": _softmax_module,
    "Unflatten": _unflatten_module,
    "Upsample": _upsample_module,
    "UpsamplingBilinear2d": _upsample_module,
    "UpsamplingNearest2d": _upsample_module,
}
