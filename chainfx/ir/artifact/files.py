"""A graph on disk: safetensors for the tensors, JSON for everything else. No pickle, nothing executable.

A folder holds ``model.safetensors`` and ``manifest.json``. The manifest has the graph, how to rebuild each leaf module
from its constructor's arguments, which tensors share storage, which are parameters, how integer codes and boolean
tensors (masks) are packed, and SHA-256 sums of the tensor file and of the manifest itself. Functions are stored by name
and found only within the exact lists of :mod:`chainfx.ir.artifact.vocabulary`; nothing of the graph runs while it is
read (:mod:`chainfx.ir.artifact.restore`).
"""

import hashlib
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from chainfx.errors import ArtifactError
from chainfx.ir.artifact.coded import CODED, describe_coded, header_bytes, read_coded, write_coded
from chainfx.ir.artifact.documents import make_folder, read_document, write_document
from chainfx.ir.artifact.functions import function_name
from chainfx.ir.artifact.literals import encode
from chainfx.ir.artifact.modules import describe_module
from chainfx.ir.artifact.packing import pack
from chainfx.ir.artifact.restore import restore
from chainfx.ir.graph import content_hash, edit, ops

__all__ = ["fingerprint", "is_coded", "load_graph", "manifest_bytes", "save_graph"]

_MANIFEST, _TENSORS = "manifest.json", "model.safetensors"


def save_graph(
    graph_module: GraphModule, folder: Path, extra: Mapping[str, Any] | None = None, *, coded: bool = False
) -> None:
    """Write a graph, and ``extra`` (plain JSON) beside it, into a folder, replacing what an earlier save left there.

    ``coded``: as the one file of :mod:`chainfx.ir.artifact.coded`, with the weights that are marked coded.

    Raises :class:`ArtifactError` for what has no safe form: a module that is not of torch.nn, a foreign function, two
    tensors of different shapes on one memory.
    """
    if coded:
        body, parts = describe_coded(graph_module, _described_graph(graph_module), _named_tensors(graph_module))
        make_folder(folder)
        write_coded(folder / CODED, {**body, "extra": dict(extra or {})}, parts)
        for name in (_MANIFEST, _TENSORS):
            (folder / name).unlink(missing_ok=True)
        return
    body, tensors = _describe(graph_module)
    make_folder(folder)
    data = _serialized(tensors)
    part = folder / f"{_TENSORS}.part"
    part.write_bytes(data)
    part.replace(folder / _TENSORS)  # a network loaded from the file before goes on reading that one
    digest = hashlib.sha256(data).hexdigest()
    write_document(folder / _MANIFEST, {**body, "extra": dict(extra or {}), "tensors_sha256": digest})
    (folder / CODED).unlink(missing_ok=True)


def manifest_bytes(graph_module: GraphModule) -> int:
    """How many bytes the manifest of a coded file takes: all but the tensors, and what is saved beside the graph."""
    described = _described_graph(graph_module, by_name=True)
    body, _ = describe_coded(graph_module, described, _named_tensors(graph_module), code=False)
    return header_bytes(body)


def _serialized(tensors: dict[str, Tensor]) -> bytes:
    try:
        return safetensors.torch.save(tensors)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ArtifactError(
            f"safetensors cannot hold the tensors of this network ({type(error).__name__}: {reason}); give each "
            f"parameter and buffer a memory of its own, dense and of a usual type."
        ) from error


def load_graph(folder: Path) -> tuple[GraphModule, dict[str, Any]]:
    """The graph in a folder and the ``extra`` saved with it; :class:`ArtifactError` if anything is not as saved."""
    if is_coded(folder):
        place = folder / CODED
        body, tensors = read_coded(place)
    else:
        place = folder / _MANIFEST
        body = read_document(place)
        tensors = _read_tensors(folder, str(body.get("tensors_sha256")))
    try:
        return restore(body, tensors), body["extra"]
    except ArtifactError:
        raise
    except Exception as error:  # whatever a file that chainfx did not write makes torch raise
        reason = (str(error).splitlines() or [""])[0]
        raise ArtifactError(
            f"{place} does not describe a graph that chainfx wrote "
            f"({type(error).__name__}: {reason}); save the model again."
        ) from error


def is_coded(folder: Path) -> bool:
    """Whether a folder holds a coded file and not the plain form."""
    return (folder / CODED).exists() and not (folder / _MANIFEST).exists()


def fingerprint(graph_module: GraphModule) -> str:
    """A hash of the graph and all its tensors: equal for networks that compute the same in the same way.

    What could not be saved, such as a module of the user's own, goes by its name and text.
    """
    return content_hash(*_describe(graph_module, by_name=True))


def _describe(graph_module: GraphModule, *, by_name: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest's body and the tensors, each stored once; ``by_name``: also of what has no safe form."""
    coded = _bits_of_codes(graph_module)
    tensors: dict[str, Tensor] = {}
    stored: dict[int, str] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name, tensor, kind in _named_tensors(graph_module):
        first = stored.setdefault(id(tensor), name)
        entries[name] = {"kind": kind, "trains": tensor.requires_grad}
        if first != name:
            entries[name]["same_as"] = first
        elif name in coded or tensor.dtype is torch.bool:
            bits = coded.get(name, 1)
            entries[name] |= {"bits": bits, "shape": list(tensor.shape), "boolean": name not in coded}
            tensors[name] = pack(tensor.detach().cpu(), bits)
        else:
            tensors[name] = tensor.detach().cpu().contiguous()
    return {**_described_graph(graph_module, by_name=by_name), "tensors": entries}, tensors


def _described_graph(graph_module: GraphModule, *, by_name: bool = False) -> dict[str, Any]:
    """The manifest's body but for the tensors."""
    calls = graph_module.graph.find_nodes(op="call_module")
    called = {str(node.target): graph_module.get_submodule(str(node.target)) for node in calls}
    return {
        "class_name": type(graph_module).__name__,
        "training": graph_module.training,
        "nodes": [_or_text(_describe_node, node, by_name) for node in graph_module.graph.nodes],
        "modules": {path: _or_text(partial(describe_module, path=path), m, by_name) for path, m in called.items()},
    }


def _bits_of_codes(graph_module: GraphModule) -> dict[str, int]:
    """The bits of each tensor of integer codes, by name: codes of weights, and places in a codebook (as uint8)."""
    found = graph_module.graph.find_nodes(op="call_function", target=ops.dequantize_weight)
    bits = {str(node.args[0].target): int(node.args[2]) for node in found}
    for node in graph_module.graph.find_nodes(op="call_function", target=ops.look_up):
        if any(each.op != "get_attr" for each in node.args):
            continue
        name, codebook = (str(each.target) for each in node.args)
        if edit.get_tensor(graph_module, name).dtype is torch.uint8:
            entries = min(edit.get_tensor(graph_module, codebook).numel(), 256)  # a uint8 names no more
            bits[name] = max((entries - 1).bit_length(), bits.get(name, 1))
    return bits


def _named_tensors(graph_module: GraphModule) -> list[tuple[str, Tensor, str]]:
    parameters = graph_module.named_parameters(remove_duplicate=False)
    buffers = graph_module.named_buffers(remove_duplicate=False)
    return [(n, p, "parameter") for n, p in parameters] + [(n, b, "buffer") for n, b in buffers]


def _or_text(describe: Callable[[Any], dict[str, Any]], thing: Any, by_name: bool) -> dict[str, Any]:
    """The description of a node or module; its type and text if it has none and ``by_name`` allows that."""
    try:
        return describe(thing)
    except ArtifactError:
        if not by_name:
            raise
        text = thing.format_node() if isinstance(thing, Node) else repr(thing)
        return {"type": f"{type(thing).__module__}.{type(thing).__qualname__}", "text": text}


def _describe_node(node: Node) -> dict[str, Any]:
    target = function_name(node.target, node.name) if node.op == "call_function" else str(node.target)
    return {
        "name": node.name,
        "op": node.op,
        "target": target,
        "args": encode(list(node.args)),
        "kwargs": encode(dict(node.kwargs)),
    }


def _read_tensors(folder: Path, expected: str) -> dict[str, Tensor]:
    """The tensors of the file; codes and masks stay in it until they are written to.

    Others get memory of their own: kernels round by where a tensor lies, and in the file it lies anywhere.
    """
    path = folder / _TENSORS
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist; copy the whole folder that save() wrote.") from error
    if found != expected:
        raise ArtifactError(f"{path} was changed or cut short after it was saved (its SHA-256 differs); save it again.")
    try:
        with safetensors.safe_open(path, framework="pt") as held:
            tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118  # it is no mapping
    except (safetensors.SafetensorError, struct.error) as error:
        raise ArtifactError(f"{path} is not a safetensors file: {error}; save the model again.") from error
    whole = (torch.uint8, torch.int8, torch.bool)
    return {name: tensor if tensor.dtype in whole else tensor.clone() for name, tensor in tensors.items()}
