"""What layers, normalizations and modules do to channels: they take them in, scale them, and make new ones."""

import re
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from chainfx.ir.channels.labels import Labels, repeated, select_first, spread, varying
from chainfx.ir.channels.rules.elementwise import RULES, along, padded, resized, same, unknown
from chainfx.ir.channels.rules.norms import NORM_MODULES, NORMS, channels_of, is_channel_norm, norm_module
from chainfx.ir.channels.rules.products import PRODUCTS, linear_product
from chainfx.ir.channels.walk import Flow, Rule, operator_name
from chainfx.ir.graph import LAYERS, TRANSPOSED, groups_of, input_of

__all__ = ["rule_of"]

_ACTIVATIONS = """Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout ReLU ReLU6 SiLU GELU
    Sigmoid Tanh Hardswish Hardsigmoid Hardtanh LeakyReLU ELU SELU CELU Mish Softplus Softsign LogSigmoid Tanhshrink
    Hardshrink Softshrink Threshold RReLU"""
_POOL = re.compile(r"(Adaptive)?(Max|Avg|LP)Pool([123])d")
_PAD = re.compile(r"(Zero|Constant|Reflection|Replication|Circular)Pad[123]d")
_WHY = "a layer reads it beside its channels"


def rule_of(flow: Flow, node: Node) -> Rule:
    """The rule for what a node calls."""
    if node.op == "call_module":
        module = flow.modules[str(node.target)]
        return norm_module if is_channel_norm(module) else _module_rule(type(module).__module__, type(module).__name__)
    if node.op == "call_function" and node.target in LAYERS:
        return layer
    return _FUNCTIONS.get(operator_name(node), unknown)


def layer(flow: Flow, node: Node) -> Labels:
    """A convolution or linear call in train form."""
    weight = flow.parameter(node.args[1])
    if weight is None or node.kwargs:
        if node.target is F.linear and flow.is_tensor(node.args[1]):
            return linear_product(flow, node)
        return flow.unknown(node, "its weight is computed")  # type: ignore[no-any-return]  # labels of the one output
    shape = weight.meta["val"].shape
    labels = flow.label(node.args[0])
    axis = labels.dim() - (len(shape) - 1)
    if node.target is F.linear and varying(labels) and axis not in varying(labels) and not flow.ledger.is_plain(labels):
        return _beside(flow, node, labels)
    taken = flow.ledger.vector(labels, axis, f"{_WHY} (node {node.name!r})")
    groups = groups_of(node, shape)
    depthwise = groups > 1 and len(taken) == groups
    rule = _transposed if node.target in TRANSPOSED else _plain
    made = (_depthwise if depthwise else rule)(flow, node, shape, taken, groups)
    flow.register(node, node.args[2], 0, made)
    return repeated(made, axis, flow.shape(node))


def _beside(flow: Flow, node: Node, labels: Labels) -> Labels:
    """A linear layer along another dimension than that of the channels, for example along tokens."""
    made = flow.source(node, node.args[1], 0, flow.shape(node)[-1])
    flow.freeze(made, node, "it makes positions beside channels")
    flow.register(node, node.args[2], 0, made)
    return select_first(labels, (labels.dim() - 1,)).expand(flow.shape(node))


def _plain(flow: Flow, node: Node, shape: torch.Size, taken: Labels, groups: int) -> Labels:
    """Weight (out, in / groups, ...). All groups lose the same relative positions."""
    flow.register(node, node.args[1], 1, _over_groups(flow, node, taken, groups))
    made = flow.source(node, node.args[1], 0, shape[0])
    _over_groups(flow, node, made, groups)
    return made


def _transposed(flow: Flow, node: Node, shape: torch.Size, taken: Labels, groups: int) -> Labels:
    """Weight (in, out / groups, ...). All groups lose the same relative positions."""
    _over_groups(flow, node, taken, groups)
    flow.register(node, node.args[1], 0, taken)
    return flow.source(node, node.args[1], 1, shape[1]).repeat(groups)


def _depthwise(flow: Flow, node: Node, shape: torch.Size, taken: Labels, groups: int) -> Labels:
    """One input channel a group: the outputs of a group go with its input, and ``groups`` is the number of inputs."""
    if len(node.args) > 6:
        flow.literal(node, "size", (6,), ((taken, 0),))
    if node.target in TRANSPOSED:
        flow.register(node, node.args[1], 0, taken)
        return taken.repeat_interleave(shape[1])
    made = flow.source(node, node.args[1], 0, shape[0])
    each = taken.repeat_interleave(shape[0] // groups) if shape[0] > groups else taken
    flow.ledger.couple(made, each, f"it goes with input channels that must stay (node {node.name!r})")
    return made


def _over_groups(flow: Flow, node: Node, labels: Labels, groups: int) -> Labels:
    """Couple equal relative positions of the groups; returns the labels of the first group."""
    if groups == 1:
        return labels
    table = labels.view(groups, -1)
    flow.ledger.couple(table, table[:1].expand_as(table), f"its groups must stay equal (node {node.name!r})")
    return table[0]


def embedding(flow: Flow, node: Node) -> Labels:
    """A table look-up makes one channel for each column."""
    weight = flow.parameter(flow.raw(node, 1, "weight"))
    if weight is None:
        return unknown(flow, node)  # type: ignore[no-any-return]  # labels of the one output
    size = int(weight.meta["val"].shape[1])
    return flow.source(node, flow.raw(node, 1, "weight"), 1, size).expand(flow.shape(node))


def prelu(flow: Flow, node: Node) -> Labels:
    """``F.prelu``: one slope, or one for each channel."""
    if input_of(node, 1).meta["val"].numel() == 1:
        return flow.label(node.args[0])
    labels, vector = channels_of(flow, node)
    flow.register(node, node.args[1], 0, vector)
    return labels


def exit_point(flow: Flow, node: Node) -> Labels:
    """The logits of an exit are an output of the network."""
    flow.freeze(flow.label(node.args[0]), node, "it is the answer of an exit")
    return flow.label(node.args[0])


_FUNCTIONS: dict[str, Rule] = {
    **RULES,
    **PRODUCTS,
    **NORMS,
    "embedding": embedding,
    "exit_point": exit_point,
    "prelu": prelu,
}


@lru_cache(maxsize=4096)
def _module_rule(home: str, kind: str) -> Rule:
    """The rule of a module of torch.nn itself, by the names of its file and its class."""
    if not home.startswith("torch.nn."):
        return _opaque
    if kind in _ACTIVATIONS.split():
        return same
    if _POOL.fullmatch(kind):
        return _pool_module
    return _padding_module if _PAD.fullmatch(kind) else _MODULES.get(kind, _opaque)


def _module(flow: Flow, node: Node) -> Any:
    return flow.modules[str(node.target)]


def _opaque(flow: Flow, node: Node) -> Any:
    return flow.unknown(node, f"the inside of module {type(_module(flow, node)).__name__} is not visible")


def _prelu_module(flow: Flow, node: Node) -> Labels:
    if _module(flow, node).num_parameters == 1:
        return flow.label(node.args[0])
    labels, vector = channels_of(flow, node)
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
    result = spread(flow.label(node.args[0]).reshape(flow.shape(node)))
    first = module.dim % flow.label(node.args[0]).dim()
    for index, size in enumerate(module.unflattened_size):
        if size != -1:
            flow.literal(node, "attribute", ("unflattened_size", index), ((result, first + index),))
    return result


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


_MODULES: dict[str, Rule] = {
    **NORM_MODULES,
    "ChannelShuffle": _channel_shuffle_module,
    "Embedding": _embedding_module,
    "Flatten": _moving_module,
    "LogSoftmax": _softmax_module,
    "PReLU": _prelu_module,
    "PixelShuffle": _pixel_shuffle_module,
    "PixelUnshuffle": _moving_module,
    "Softmax": _softmax_module,
    "Softmax2d": _softmax2d_module,
    "Softmin": _softmax_module,
    "Unflatten": _unflatten_module,
    "Upsample": _upsample_module,
    "UpsamplingBilinear2d": _upsample_module,
    "UpsamplingNearest2d": _upsample_module,
}
