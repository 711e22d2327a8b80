"""Functions, tensor methods and attributes that a saved graph names: written by exact name, and found by it again."""

import builtins
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from chainfx.errors import ArtifactError
from chainfx.ir.artifact.vocabulary import ATEN, ATTRIBUTES, BUILTINS, FUNCTIONS, METHODS
from chainfx.ir.graph import DEPTHWISE, DIALECT, assign_, torchao_weight

__all__ = ["OWN_NAMES", "check_call", "function", "function_name"]

# what chainfx defines itself goes by a name that does not say in which file; 0.1 wrote the file of its day
OWN_NAMES = ("chainfx", "chainfx.ir.ops", "chainfx.ir.leaves", "chainfx.ir.depthwise")
_OWN_OPS: tuple[Callable[..., Any], ...] = (*DIALECT, *DEPTHWISE.values(), assign_, torchao_weight)
_OWN = {op.__name__: op for op in _OWN_OPS}


def function_name(target: Any, node: str) -> str:
    """``module:name`` of the function that a node calls; raises :class:`ArtifactError` if it is on no list."""
    name = str(getattr(target, "__name__", target))
    if _OWN.get(name) is target:
        return f"{OWN_NAMES[0]}:{name}"
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
        if _overload(name) is target:
            return f"aten:{name}"
    if name in BUILTINS and getattr(builtins, name) is target:
        return f"builtins:{name}"
    home = getattr(target, "__module__", None)
    for module in sorted(FUNCTIONS, key=lambda module: module != home):
        if name in FUNCTIONS[module] and _find(module, name) is target:
            return f"{module}:{name}"
    raise ArtifactError(f"node {node!r} calls {name!r}, which has no safe name; use a torch function to save it.")


def function(name: str) -> Callable[..., Any]:
    """The function that :func:`function_name` named; raises :class:`ArtifactError` for anything outside the lists."""
    module, _, attribute = name.partition(":")
    found = None
    if module in OWN_NAMES:
        found = _OWN.get(attribute)
    elif module == "aten":
        found = _overload(attribute)
    elif module == "builtins" and attribute in BUILTINS:
        found = getattr(builtins, attribute)
    elif attribute in FUNCTIONS.get(module, ()):
        found = _find(module, attribute)
    if found is None:
        raise ArtifactError(f"the saved graph calls {name!r}, which chainfx does not load; save it with this version.")
    return found


def check_call(node: Node) -> None:
    """Raise :class:`ArtifactError` unless a method is on the list, and ``getattr`` reads an attribute that is."""
    if node.target is getattr:
        read = node.args[1] if len(node.args) == 2 and not node.kwargs else None
        if read not in ATTRIBUTES:
            raise ArtifactError(f"the saved graph reads the attribute {read!r}, which chainfx does not load.")
    if node.op == "call_method" and str(node.target) not in METHODS:
        raise ArtifactError(f"the saved graph calls the method {node.target!r}, which chainfx does not load.")


def _find(module: str, name: str) -> Any:
    """The function of a module of the lists; ``None`` if this torch or torchvision does not have it."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:  # torch._C._nn and its like are attributes
        found: Any = torch
        for part in module.split(".")[1:]:
            found = getattr(found, part, None)
        return getattr(found, name, None)


def _overload(text: str) -> Any:
    """The operator of ATen that is written ``aten.add.Tensor``; ``None`` if it is on no list."""
    namespace, _, rest = text.partition(".")
    operation, _, overload = rest.partition(".")
    if namespace != "aten" or operation.removesuffix("_") not in ATEN:
        return None
    packet = getattr(torch.ops.aten, operation, None)
    return getattr(packet, overload, None) if packet is not None and overload in packet.overloads() else None
