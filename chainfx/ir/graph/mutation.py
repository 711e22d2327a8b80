"""Operations in place: which nodes they are, and which of them something reads that comes after."""

import operator

from torch import nn
from torch.fx import Node

__all__ = ["changes_in_place", "changes_what_is_used", "cuts_tensor"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_AUGMENTED = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow")
_IN_PLACE = frozenset(getattr(operator, name) for name in _AUGMENTED)
_CUTS = _words("chunk dsplit hsplit split split_with_sizes tensor_split unbind unsafe_chunk unsafe_split vsplit")
_VIEWS = _CUTS | _words("""
    adjoint alias as_strided broadcast_to contiguous detach diagonal expand expand_as flatten getitem imag movedim
    moveaxis narrow permute ravel real reshape reshape_as select slice split_with_sizes squeeze swapaxes swapdims t to
    transpose type unflatten unfold unsqueeze view view_as view_as_complex view_as_real
""")


def changes_in_place(node: Node, model: nn.Module) -> bool:
    """Whether a node changes its first argument in place, so that it is needed even if nobody uses what it returns.

    ``model`` holds the module that a ``call_module`` node calls. Names that end in one underscore are torch's for this,
    in ATen too (``add_.Tensor``); ``operator.iadd`` is what ``x += 1`` calls.
    """
    if node.op == "call_module":
        return getattr(model.get_submodule(str(node.target)), "inplace", False) is True
    if node.target in _IN_PLACE or (node.op == "call_function" and node.kwargs.get("inplace") is True):
        return True
    name = _called(node)
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
    if node.target is getattr:
        return node.args[1] in ("data", "T", "mT", "H", "mH", "real", "imag")
    return _called(node) in _VIEWS


def cuts_tensor(node: Node) -> bool:
    """Whether a node gives a tuple of views of its first argument, as ``chunk``, ``split`` and ``unbind`` do."""
    return _called(node) in _CUTS


def _called(node: Node) -> str:
    """The name of the method or function that a node calls; empty for any other node."""
    if node.op == "call_method":
        return str(node.target)
    return str(getattr(node.target, "__name__", "")).partition(".")[0] if node.op == "call_function" else ""
