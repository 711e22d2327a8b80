"""Rules for normalizations, as functions and as modules.

Batch and instance normalization treat each channel alone. A layer normalization, and a group normalization with one
group, take their statistics over the channels that are left: that is what pruning them means. A group normalization
with more groups loses whole groups, which changes nothing for the others.
"""

from typing import Any

from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _NormBase

from chainfx.ir.channels.labels import Labels, compact, repeated, varying
from chainfx.ir.channels.walk import Flow, Rule

__all__ = ["BESIDE", "NORMS", "NORM_MODULES", "channels_of", "has_own_affine_only", "is_channel_norm", "norm_module"]

_SCALES = ("running_mean", "running_var", "weight", "bias")
BESIDE = "a layer reads it beside its channels"


def channels_of(flow: Flow, node: Node) -> tuple[Labels, Labels]:
    """The labels of a tensor (N, C, ...), pinned along all dimensions but C, and those along C, shape (C,)."""
    labels = flow.label(node.args[0])
    vector = flow.ledger.vector(labels, 1, f"{BESIDE} (node {node.name!r})")
    return beside(vector, labels, 1), vector


def beside(vector: Labels, labels: Labels, dim: int) -> Labels:
    """A label tensor of the shape of ``labels`` with ``vector`` along ``dim``; ``labels`` itself if it is that."""
    if varying(labels) == (dim,):
        return labels
    return repeated(vector, dim, labels.shape)


def batch_norm(flow: Flow, node: Node) -> Labels:
    """The rule for ``F.batch_norm`` and ``F.instance_norm``: each channel alone, with its own parameters."""
    labels, vector = channels_of(flow, node)
    for position, name in enumerate(_SCALES, start=1):
        flow.register(node, flow.raw(node, position, name), 0, vector)
    return labels


def is_channel_norm(module: nn.Module) -> bool:
    """Whether a module is a batch or instance normalization that does what torch's does, or a subclass of that kind."""
    of_torch = isinstance(module, _NormBase) and type(module).forward.__module__.startswith("torch.nn.")
    return of_torch and has_own_affine_only(module)


def has_own_affine_only(module: nn.Module) -> bool:
    """Whether a layer of torch has no parameters but ``weight`` and ``bias``, and computes neither of them.

    Other modules may lie in it, which the graph calls by themselves.
    """
    return "parametrizations" not in module._modules and module._parameters.keys() <= {"weight", "bias"}


def norm_module(flow: Flow, node: Node) -> Labels:
    """The rule for batch and instance normalization as modules."""
    labels, vector = channels_of(flow, node)
    for path in _own(flow, node, _SCALES):
        flow.ledger.register(path, 0, vector)
    flow.literal(node, "attribute", ("num_features",), ((vector, 0),))
    return labels


def _own(flow: Flow, node: Node, names: tuple[str, ...] = ("weight", "bias")) -> list[str]:
    """The paths of those tensors that the module of a node has."""
    return [flow.module_path(node, name) for name in names if f"{node.target}.{name}" in flow.tensors]


def layer_norm(flow: Flow, node: Node) -> Labels:
    """The rule for ``F.layer_norm`` and ``F.rms_norm`` over the last dimensions."""
    last = len(flow.argument(node, 1, "normalized_shape"))
    labels, vector, dim = _normalized(flow, node, last)
    if vector is None:
        return labels
    for position, name in enumerate(("weight", "bias"), start=2):
        flow.register(node, flow.raw(node, position, name), dim, vector)
    where: tuple[int | str, ...] = (1,) if len(node.args) > 1 else ("normalized_shape",)
    if isinstance(flow.raw(node, 1, "normalized_shape"), Node):
        flow.literal(node, "shape", where, tuple((labels, d) for d in range(labels.dim() - last, labels.dim())))
    else:
        flow.literal(node, "size", (*where, dim), ((vector, 0),))
    return labels


def _layer_norm_module(flow: Flow, node: Node) -> Labels:
    module: Any = flow.modules[str(node.target)]
    labels, vector, dim = _normalized(flow, node, len(module.normalized_shape))
    if vector is not None:
        for path in _own(flow, node):
            flow.ledger.register(path, dim, vector)
        flow.literal(node, "attribute", ("normalized_shape", dim), ((vector, 0),))
    return labels


def _normalized(flow: Flow, node: Node, last: int) -> tuple[Labels, Labels | None, int]:
    """The labels before a normalization over the ``last`` dimensions, with what it has parameters for.

    Next come the labels along the one normalized dimension that has channels, or ``None``, and the place of this
    dimension among the normalized ones.
    """
    labels = flow.label(node.args[0])
    first = labels.dim() - last
    moving = [d for d in varying(labels) if d >= first]
    if not moving:
        return labels, None, 0
    if flow.fold == "heads" and _is_by_head(labels, first):
        reason = f"it is normalized over the width of its head (node {node.name!r})"
        return flow.ledger.pin(labels, tuple(moving), reason), None, 0
    dim = max(moving, key=lambda d: (labels.size(d), d))
    vector = flow.ledger.vector(labels, dim, f"{BESIDE} (node {node.name!r})")
    return beside(vector, labels, dim), vector, dim - first


def _is_by_head(labels: Labels, first: int) -> bool:
    """Whether queries or keys are normalized head by head: channels of one layer lie as (heads, width) in two axes.

    ``first``: the first of the dimensions that are normalized.
    """
    moving = varying(labels)
    if len(moving) != 2 or not moving[0] < first <= moving[1]:
        return False
    table = compact(labels).reshape([labels.size(d) for d in moving])
    steps = table.diff(dim=0)
    return bool((table.diff(dim=1) == 1).all() and (steps == steps[0, 0]).all() and steps[0, 0] >= table.size(1))


def group_norm(flow: Flow, node: Node) -> Labels:
    """The rule for ``F.group_norm``: whole groups go, or channels of the only group."""
    labels, vector, leaders = _grouped(flow, node, flow.argument(node, 1, "num_groups"))
    for position, name in enumerate(("weight", "bias"), start=2):
        flow.register(node, flow.raw(node, position, name), 0, vector)
    flow.literal(node, "size", (1,) if len(node.args) > 1 else ("num_groups",), ((leaders, 0),))
    return labels


def _group_norm_module(flow: Flow, node: Node) -> Labels:
    module: Any = flow.modules[str(node.target)]
    labels, vector, leaders = _grouped(flow, node, module.num_groups)
    for path in _own(flow, node):
        flow.ledger.register(path, 0, vector)
    flow.literal(node, "attribute", ("num_groups",), ((leaders, 0),))
    flow.literal(node, "attribute", ("num_channels",), ((vector, 0),))
    return labels


def _grouped(flow: Flow, node: Node, groups: int) -> tuple[Labels, Labels, Labels]:
    """The labels before a normalization over ``groups`` of channels, and the labels of the channels, shape (C,).

    Last come the labels of the first channel of each group, (groups,), whose number is the number of groups; they are
    zeros for a single group, which always stays.
    """
    labels, vector = channels_of(flow, node)
    if groups == 1:
        return labels, vector, vector[:1] * 0
    table = vector.view(groups, -1)
    leaders = table[:, :1].expand_as(table)
    flow.ledger.couple(table, leaders, f"it is normalized with channels that must stay (node {node.name!r})")
    return labels, vector, table[:, 0]


def _local_response(flow: Flow, node: Node) -> Labels:
    labels = flow.label(node.args[0])
    return flow.ledger.forbid(labels, (1,), f"it is normalized with its neighbours (node {node.name!r})")


NORMS: dict[str, Rule] = {
    "batch_norm": batch_norm,
    "group_norm": group_norm,
    "instance_norm": batch_norm,
    "layer_norm": layer_norm,
    "local_response_norm": _local_response,
    "rms_norm": layer_norm,
}

NORM_MODULES: dict[str, Rule] = {
    "group_norm": _group_norm_module,
    "layer_norm": _layer_norm_module,
    "local_response_norm": _local_response,
    "rms_norm": _layer_norm_module,
}
