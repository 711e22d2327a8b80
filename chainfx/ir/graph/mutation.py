"""Operations in place: which nodes they are, and which of them something reads that comes after."""

import operator

from torch import nn
from torch.fx import Node

from chainfx.ir.graph.operators import Trait, names_with, operator_of

__all__ = ["AUGMENTED", "changes_in_place", "changes_what_is_used", "cuts_tensor"]

AUGMENTED = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
}
"""What ``x += 1`` and its like call, each with the function that makes a new tensor."""


def changes_in_place(node: Node, model: nn.Module) -> bool:
    """Whether a node changes its first argument in place, so that it is needed even if nobody uses what it returns.

    ``model`` holds the module that a ``call_module`` node calls. Names that end in one underscore are torch's for this,
    in ATen too (``add_.Tensor``); ``operator.iadd`` is what ``x += 1`` calls.
    """
    if node.op == "call_module":
        return getattr(model.get_submodule(str(node.target)), "inplace", False) is True
    if node.target in AUGMENTED or (node.op == "call_function" and node.kwargs.get("inplace") is True):
        return True
    if node.op == "call_method":
        name = str(node.target)
    else:
        name = str(getattr(node.target, "__name__", "")).partition(".")[0] if node.op == "call_function" else ""
    return name.endswith("_") and not name.endswith("__")


def changes_what_is_used(node: Node, model: nn.Module) -> bool:
    """Whether a node changes a tensor in place that something after it reads, itself or through a view.

    An input and a tensor of the network count as read: who called sees them, or the next call does.
    """
    current = node
    while changes_in_place(current, model) or (current is not node and _is_view(current)):
        source = current.args[0] if current.args else None
        if not isinstance(source, Node):
            return False
        if source.op in ("placeholder", "get_attr") or any(user > node for user in source.users):
            return True
        current = source
    return False


def _is_view(node: Node) -> bool:
    """Whether what a node gives may share the memory of its first argument."""
    return operator_of(node).name in names_with(Trait.VIEW)


def cuts_tensor(node: Node) -> bool:
    """Whether a node gives a tuple of views of its first argument, as ``chunk``, ``split`` and ``unbind`` do."""
    return operator_of(node).name in names_with(Trait.CUT)
