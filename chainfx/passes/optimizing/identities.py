"""Nodes that give what they are given."""

from torch import Tensor
from torch.fx import GraphModule, Node

from chainfx.ir.graph import ByMode, Trait, edit, names_with, operator_of
from chainfx.passes.optimizing.purity import changing_nodes

__all__ = ["remove_identities"]

_DROPOUTS = frozenset({"dropout", "alpha_dropout", "feature_alpha_dropout", "feature_dropout", "stochastic_depth"})
_NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1, "pow": 1}


def remove_identities(graph_module: GraphModule) -> int:
    """Take out what does nothing in eval mode; returns how many nodes went.

    That is ``Identity``, dropout of every kind, a nonlinearity such as ReLU right after itself, and ``x + 0``,
    ``x - 0``, ``x * 1``, ``x / 1`` and ``x ** 1`` where the result has the shape and dtype of ``x``.
    """
    changing = changing_nodes(graph_module)
    count = 0
    for node in list(graph_module.graph.nodes):
        if node.op.startswith("call_") and _does_nothing(graph_module, node, changing):
            node.replace_all_uses_with(edit.input_of(node))
            graph_module.graph.erase_node(node)
            count += 1
    return count


def _does_nothing(graph_module: GraphModule, node: Node, changing: set[Node]) -> bool:
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or not _alike(node, source):
        return False
    name = operator_of(node, graph_module.get_submodule).name
    if name in _DROPOUTS:
        return node.op == "call_module" or _is_off(graph_module, node)
    if name == "identity":
        return node.op == "call_module"
    if changing & {node, *source.users} - {source}:  # what takes the place of a copy must not be changed
        return False
    if name in names_with(Trait.IDEMPOTENT):
        return operator_of(source, graph_module.get_submodule).name == name
    neutral = _NEUTRAL.get(name)
    other = node.args[1] if len(node.args) == 2 and not node.kwargs else None
    return neutral is not None and isinstance(other, int | float) and other == neutral


def _alike(node: Node, source: Node) -> bool:
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    return (before.shape, before.dtype) == (after.shape, after.dtype)


def _is_off(graph_module: GraphModule, node: Node) -> bool:
    """Whether a call of functional dropout drops nothing in eval mode."""
    training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
    by_mode = edit.module_of(graph_module, training, ByMode)
    return training is False or (by_mode is not None and by_mode.in_evaluation is False)
