"""Arguments of nodes and options of modules as JSON, and back."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

from chainfx.errors import ArtifactError

__all__ = ["decode", "dtype_of", "encode"]

_TORCH_KINDS = {kind: getattr(torch, kind) for kind in ("dtype", "device", "memory_format", "layout")}


def encode(value: Any) -> Any:
    """A node's argument as JSON; raises :class:`ArtifactError` for what has no safe form."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(value.start), encode(value.stop), encode(value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    for kind, cls in _TORCH_KINDS.items():
        if isinstance(value, cls):
            return {kind: str(value)}
    raise ArtifactError(f"the argument {value!r} of type {type(value).__name__} has no safe form.")


def decode(value: Any, nodes: Mapping[str, Node]) -> Any:
    """The argument that :func:`encode` wrote; ``nodes`` by name."""
    if isinstance(value, list):
        return [decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "tuple":
        return tuple(decode(item, nodes) for item in content)
    if kind == "dict":
        return {decode(key, nodes): decode(item, nodes) for key, item in content}
    if kind == "slice":
        return slice(*(decode(item, nodes) for item in content))
    if kind == "ellipsis":
        return Ellipsis
    if kind == "float":
        return float(content)
    if kind == "device":
        return torch.device(content)
    if kind in _TORCH_KINDS:
        return _constant(kind, content)
    raise ArtifactError(f"the saved graph has an argument of unknown kind {kind!r}.")


def dtype_of(text: str) -> torch.dtype:
    """The dtype that is written ``torch.float32``; raises :class:`ArtifactError` if there is none of that name."""
    found: torch.dtype = _constant("dtype", text)
    return found


def _constant(kind: str, text: str) -> Any:
    """The dtype, memory format or layout of a name; nothing else of torch is handed out."""
    found = getattr(torch, text.removeprefix("torch."), None)
    if not isinstance(found, _TORCH_KINDS[kind]):
        raise ArtifactError(f"the saved graph has a {kind} {text!r}, which this torch does not have.")
    return found
