"""What a manifest describes, made again: modules without values, then their tensors, then the graph.

A file decides nothing but what is computed. Names of functions, methods, attributes and classes are looked up in exact
lists; what becomes text of the graph's Python code must be an identifier; a node reads only tensors and calls only
modules that the manifest lists; sizes are compared with the bytes that are there before any memory is asked for.
"""

import keyword
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from chainfx.errors import ArtifactError
from chainfx.ir.artifact.functions import check_call, function
from chainfx.ir.artifact.literals import decode
from chainfx.ir.artifact.modules import build_module
from chainfx.ir.artifact.packing import unpack
from chainfx.ir.graph import edit

__all__ = ["restore"]

_OPS = ("placeholder", "get_attr", "call_function", "call_method", "call_module", "output")


def restore(body: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GraphModule:
    """The graph of a manifest's body over the tensors of its file.

    Raises :class:`ArtifactError` for anything that chainfx would not have written, and whatever torch raises for what
    it cannot build.
    """
    root = nn.Module()
    for path, config in sorted(body["modules"].items()):  # a module before those inside it
        edit.place_module(root, _checked_path(path), build_module(config))
    _restore_tensors(root, body["tensors"], tensors)
    graph = _build_graph(body)
    graph_module = GraphModule(root, graph, class_name=_identifier(body["class_name"]))
    graph_module.train(bool(body["training"]))
    return graph_module


def _build_graph(body: Mapping[str, Any]) -> Graph:
    graph = Graph()
    made: dict[str, Node] = {}
    for item in body["nodes"]:
        target = _target_of(item, body)
        args, kwargs = decode(item["args"], made), decode(item["kwargs"], made)
        for key in kwargs:
            _identifier(key)
        node = graph.create_node(item["op"], target, tuple(args), kwargs, name=_identifier(item["name"]))
        check_call(node)
        made[item["name"]] = node
    graph.lint()
    return graph


def _target_of(item: Mapping[str, Any], body: Mapping[str, Any]) -> Any:
    """What a node calls or reads, if it is something that a file may name."""
    op, target = item["op"], item["target"]
    if op not in _OPS:
        raise ArtifactError(f"the saved graph has a node of kind {op!r}, which chainfx does not load.")
    if op == "call_function":
        return function(target)
    if op == "get_attr" and target not in body["tensors"]:
        raise ArtifactError(f"the saved graph reads {target!r}, which is no tensor of the file; save the model again.")
    if op == "call_module" and target not in body["modules"]:
        raise ArtifactError(f"the saved graph calls {target!r}, which is no module of the file; save the model again.")
    return _identifier(target) if op in ("placeholder", "call_method") else target


def _identifier(text: Any) -> str:
    """A name that stands in the Python code of a graph, as it is; anything else could be code itself."""
    if not isinstance(text, str) or not text.isidentifier() or keyword.iskeyword(text):
        raise ArtifactError(f"the saved graph has the name {text!r}, which is no identifier; save the model again.")
    return text


def _checked_path(path: str) -> str:
    """The dotted path of a module or tensor; torch.fx writes its parts into code between quotation marks."""
    if not path.isprintable() or any(mark in path for mark in "\"'\\"):
        raise ArtifactError(f"the saved graph has the path {path!r}, which cannot stand in code; rename the module.")
    return path


def _restore_tensors(root: nn.Module, entries: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    made: dict[str, Tensor] = {}
    for name, entry in entries.items():
        path = _checked_path(name)
        if "same_as" in entry:
            value = made[entry["same_as"]]
        else:
            value = _unpacked(name, entry, tensors[name]) if "bits" in entry else tensors[name]
            if entry["kind"] == "parameter":
                value = nn.Parameter(value, requires_grad=bool(entry["trains"]))
        edit.place_tensor(root, path, value)
        made[name] = value
    held = edit.tensors_of(edit.modules_by_path(root))
    missing = next((name for name, tensor in held.items() if tensor.is_meta), None)
    if missing is not None:
        raise ArtifactError(f"the file has no values for tensor {missing!r}; save the model again.")


def _unpacked(name: str, entry: Mapping[str, Any], packed: Tensor) -> Tensor:
    """Codes or a mask as they were before they were packed; the sizes must be those of the bytes that are there."""
    bits, shape = entry["bits"], tuple(entry["shape"])
    whole = isinstance(bits, int) and 1 <= bits <= 8 and all(type(size) is int and size >= 0 for size in shape)
    if not whole or packed.dtype is not torch.uint8 or packed.numel() != -(-math.prod(shape) * bits // 8):
        raise ArtifactError(
            f"tensor {name!r} has {packed.numel()} bytes, which are not {bits} bits for each element of shape "
            f"{list(shape)}; save the model again."
        )
    values = unpack(packed, bits, shape)
    return values.bool() if entry.get("boolean") else values
