"""Rules for layers and modules: they read channels, scale them, and make new ones."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from chainfx.ir.channels.labels import Labels, repeated, select_first, spread, varying
from chainfx.ir.channels.rules.elementwise import BOTH, RULES, along, as_positions, padded, unknown
from chainfx.ir.channels.rules.norms import (
    BESIDE,
    NORM_MODULES,
    NORMS,
    channels_of,
    has_own_affine_only,
    is_channel_norm,
    norm_module,
)
from chainfx.ir.channels.rules.products import PRODUCTS, linear_product
from chainfx.ir.channels.walk import Flow, Rule
from chainfx.ir.graph import LAYERS, TRANSPOSED, groups_of

__all__ = ["rule_of"]


def rule_of(flow: Flow, node: Node) -> Rule:
    """The rule for what a node calls; one that freezes everything if there is no other."""
    if node.op == "call_module":
        module = flow.modules[str(node.target)]
        if is_channel_norm(module):
            return norm_module
        return _MODULES.get(flow.operator(node).name, _opaque) if has_own_affine_only(module) else _opaque
    if node.op == "call_function" and node.target in LAYERS:
        return layer
    return _FUNCTIONS.get(flow.operator(node).name, unknown)


def layer(flow: Flow, node: Node) -> Any:
    """The rule for a convolution or linear layer in train form.

    Along its input dimension the weight has the labels of the channels that it reads; its output dimension makes new
    channels.
    """
    weight = flow.parameter(node.args[1])
    if weight is None or node.kwargs:
        if node.target is F.linear and flow.is_tensor(node.args[1]):
            return linear_product(flow, node)
        return flow.unknown(node, "its weight is computed")
    shape = weight.meta["val"].shape
    labels = flow.label(node.args[0])
    axis = labels.dim() - (len(shape) - 1)
    if node.target is F.linear and varying(labels) and axis not in varying(labels) and not flow.ledger.is_plain(labels):
        return _beside(flow, node, labels)
    taken = flow.ledger.vector(labels, axis, f"{BESIDE} (node {node.name!r})")
    groups = groups_of(node, shape)
    depthwise = groups > 1 and len(taken) == groups
    rule = _transposed if node.target in TRANSPOSED else _plain
    made = (_depthwise if depthwise else rule)(flow, node, shape, taken, groups)
    flow.register(node, node.args[2], 0, made)
    return repeated(made, axis, flow.shape(node))


def _beside(flow: Flow, node: Node, labels: Labels) -> Labels:
    """The labels of a linear layer over another dimension than that of the channels, such as the tokens."""
    made = flow.source(node, node.args[1], 0, flow.shape(node)[-1])
    flow.freeze(made, node, "it makes positions beside channels")
    flow.register(node, node.args[2], 0, made)
    return select_first(labels, (labels.dim() - 1,)).expand(flow.shape(node))


def _plain(flow: Flow, node: Node, shape: torch.Size, taken: Labels, groups: int) -> Labels:
    """The labels along the output of a layer with weight (out, in / groups, ...).

    All groups lose the same relative positions, so that they stay equal in size.
    """
    flow.register(node, node.args[1], 1, _over_groups(flow, node, taken, groups))
    made = flow.source(node, node.args[1], 0, shape[0])
    _over_groups(flow, node, made, groups)
    return made


def _transposed(flow: Flow, node: Node, shape: torch.Size, taken: Labels, groups: int) -> Labels:
    """The labels along the output of a transposed convolution with weight (in, out / groups, ...)."""
    _over_groups(flow, node, taken, groups)
    flow.register(node, node.args[1], 0, taken)
    return flow.source(node, node.args[1], 1, shape[1]).repeat(groups)


def _depthwise(flow: Flow, node: Node, shape: torch.Size, taken: Labels, groups: int) -> Labels:
    """The labels along the output of a convolution with one input channel for each group.

    The outputs of a group go with its input, and the literal ``groups`` is the number of inputs that are left.
    """
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
    """Couple the channels at the same place of all groups; returns the labels of the first group."""
    if groups == 1:
        return labels
    table = labels.view(groups, -1)
    flow.ledger.couple(table, table[:1].expand_as(table), f"its groups must stay equal (node {node.name!r})")
    return table[0]


def embedding(flow: Flow, node: Node) -> Any:
    """The rule for ``F.embedding``: the table makes one channel for each of its columns."""
    weight = flow.parameter(flow.raw(node, 1, "weight"))
    if weight is None:
        return unknown(flow, node)
    flow.freeze_positions(node, flow.raw(node, 0, "input"))
    size = int(weight.meta["val"].shape[1])
    return flow.source(node, flow.raw(node, 1, "weight"), 1, size).expand(flow.shape(node))


def prelu(flow: Flow, node: Node) -> Labels:
    """The rule for ``F.prelu``: one slope for all channels, or one for each."""
    if flow.shape(flow.raw(node, 1, "weight")).numel() == 1:
        return flow.label(node.args[0])
    labels, vector = channels_of(flow, node)
    flow.register(node, flow.raw(node, 1, "weight"), 0, vector)
    return labels


def exit_point(flow: Flow, node: Node) -> Labels:
    """The rule for an exit: its logits are an output of the network."""
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
    flow.freeze_positions(node, flow.raw(node, 0, "input"))
    size = _module(flow, node).embedding_dim
    atoms = flow.ledger.source(node.name, flow.module_path(node, "weight"), 1, size)
    flow.literal(node, "attribute", ("embedding_dim",), ((atoms, 0),))
    return atoms.expand(flow.shape(node))


def _padding_module(flow: Flow, node: Node) -> Labels:
    module = _module(flow, node)
    mode = "constant" if flow.operator(node).name in ("constant_pad", "zero_pad") else "other"
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
    return as_positions(flow, node, _moving_module(flow, node))


def _softmax_module(flow: Flow, node: Node) -> Labels:
    module = _module(flow, node)
    dim = -3 if isinstance(module, nn.Softmax2d) else module.dim
    return along(flow, node, dim, flow.operator(node).spelling)


_MODULES: dict[str, Rule] = {
    **BOTH,
    **NORM_MODULES,
    **dict.fromkeys(("log_softmax", "softmax", "softmin"), _softmax_module),
    **dict.fromkeys(("circular_pad", "constant_pad", "reflection_pad", "replication_pad", "zero_pad"), _padding_module),
    **dict.fromkeys(("flatten", "pixel_unshuffle"), _moving_module),
    "channel_shuffle": _channel_shuffle_module,
    "embedding": _embedding_module,
    "pixel_shuffle": _pixel_shuffle_module,
    "prelu": _prelu_module,
    "unflatten": _unflatten_module,
}
