"""The coded file: one binary file with the manifest, deflated, and every tensor in the code that is smallest for it.

``model.chainfx`` holds, one after the other: the magic number and the version of this format, the first 16 bytes of the
SHA-256 sum of all that follows, the sizes of the manifest and the manifest (JSON without what follows from the rest,
:mod:`chainfx.ir.artifact.compact`, deflated with a dictionary of what manifests usually say), and the tensors in the
order of the manifest (:mod:`chainfx.coding`). The codes or values of a masked weight and its mask are coded together.

Reading is bounded: a file of n bytes may unfold to at most 2**20 + 4096 n elements, and nothing is allocated before
that is checked.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from chainfx.coding import Coder, Reader, decode_tensor, encode_tensor, varint
from chainfx.errors import ArtifactError
from chainfx.ir.artifact.compact import compact, unfolded
from chainfx.ir.artifact.dictionary import DICTIONARY
from chainfx.ir.artifact.literals import dtype_of
from chainfx.ir.artifact.packing import array_of, tensor_of
from chainfx.ir.graph import edit, ops

__all__ = ["CODED", "describe_coded", "header_bytes", "read_coded", "write_coded"]

CODED = "model.chainfx"
_MAGIC = b"chFX"
_VERSION = 3
_DIGEST = 16
_MOST_MANIFEST = 1 << 28
_MOST_UNFOLDED = 4096
_AT_LEAST = 1 << 20
_NODE = ("name", "op", "target", "args", "kwargs")

_Named = Iterable[tuple[str, Tensor, str]]


def describe_coded(
    graph_module: GraphModule, described: Mapping[str, Any], named: _Named, *, code: bool = True
) -> tuple[dict[str, Any], list[bytes]]:
    """The manifest of a coded file and its tensors; ``described`` is the graph, ``named`` all tensors with their kind.

    Each tensor is ``[name, kind, trains, dtype, shape]`` and, of a masked weight, the name of its mask, which follows
    it with the bytes of both; a tensor that is another one, too, has the name of that one in place of a dtype.
    ``code``: whether the bytes are wanted.
    """
    coders, masks = _coders(graph_module), _own_masks(graph_module)
    held = {name: tensor for name, tensor, _ in named}
    kinds = {name: kind for name, _, kind in named}
    stored: dict[int, str] = {}
    entries, parts = [], []
    for name, tensor in held.items():
        first = stored.setdefault(id(tensor), name)
        entry = [name, kinds[name], tensor.requires_grad]
        if first != name:
            entries.append([*entry, first])
            continue
        mask = masks.get(name)
        described_as = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        entries.append([*entry, *described_as, *([mask] if mask else [])])
        if code and name not in masks.values():
            kept = None if mask is None else held[mask].cpu().numpy()
            parts.append(encode_tensor(array_of(tensor.cpu()), kept, coders.get(name, "static")))
    nodes = [[node.get(key) for key in _NODE] if "name" in node else node for node in described["nodes"]]
    return {**described, "nodes": nodes, "tensors": entries}, parts


def _coders(graph_module: GraphModule) -> dict[str, Coder]:
    """By the path of each stored tensor of a weight that is marked: its coder."""
    found: dict[str, Coder] = {}
    for node in graph_module.graph.find_nodes(op="call_function", target=ops.coded_weight):
        stored = edit.origin(node)
        if stored is not None:
            found[str(stored.target)] = cast(Coder, node.args[1])
    return found


def _own_masks(graph_module: GraphModule) -> dict[str, str]:
    """By the path of each stored weight that is read through one mask alone, which masks nothing else: that mask.

    What the mask hides is not stored. A quantizer between the two would see it, so there it must be 0 already.
    """
    masks_of: dict[str, set[str]] = {}
    weights_of: dict[str, set[str]] = {}
    for node in graph_module.graph.find_nodes(op="get_attr"):
        path = str(node.target)
        for above, quantized in _masks_above(node, False):
            mask = "" if quantized and above and _hides(graph_module, path, above) else above
            masks_of.setdefault(path, set()).add(mask)
            weights_of.setdefault(mask, set()).add(path)
    found = {path: next(iter(masks)) for path, masks in masks_of.items() if len(masks) == 1}
    return {path: mask for path, mask in found.items() if mask and len(weights_of[mask]) == 1}


def _hides(graph_module: GraphModule, path: str, mask: str) -> bool:
    """Whether a mask hides anything but zeros of a stored weight."""
    values, kept = (edit.get_tensor(graph_module, each).cpu() for each in (path, mask))
    return bool(array_of(values)[~array_of(kept)].any())


def _masks_above(node: Node, quantized: bool) -> list[tuple[str, bool]]:
    """For each way in which a stored tensor is read as what a dialect op works on: the mask, and if it is quantized."""
    found = []
    for user in node.users:
        if not edit.is_dialect(user):
            found.append(("", quantized))
        elif user.args[0] is not node:
            continue
        elif user.target is ops.mask_weight and edit.input_of(user, 1).op == "get_attr":
            found.append((str(edit.input_of(user, 1).target), quantized))
        else:
            found += _masks_above(user, quantized or user.target is ops.quantize_weight)
    return found


def header_bytes(body: Mapping[str, Any]) -> int:
    """How many bytes all but the tensors takes."""
    return len(_header(body)) + len(_MAGIC) + 1 + _DIGEST


def _header(body: Mapping[str, Any]) -> bytes:
    text = json.dumps(compact(body), separators=(",", ":")).encode()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
    deflated = deflate.compress(text) + deflate.flush()
    return varint(len(text)) + varint(len(deflated)) + deflated


def write_coded(path: Path, body: Mapping[str, Any], parts: Sequence[bytes]) -> None:
    """Write a manifest and the bytes of its tensors; a reader sees all of it or nothing."""
    content = _header(body) + b"".join(parts)
    if sum(math.prod(entry[4]) for entry in body["tensors"] if len(entry) > 4) > _most_elements(len(content)):
        raise ArtifactError(
            f"the network has more than {_MOST_UNFOLDED} elements for each byte that it codes to, which no reader "
            f"accepts; leave Encode out, or prune channels in place of weights."
        )
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_bytes(_MAGIC + bytes([_VERSION]) + hashlib.sha256(content).digest()[:_DIGEST] + content)
    temporary.replace(path)


def _most_elements(size: int) -> int:
    return _AT_LEAST + _MOST_UNFOLDED * size


def read_coded(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest in the form of ``manifest.json`` and the tensors of a coded file.

    Raises :class:`ArtifactError` for a file that is not as it was written, and for codes that this version does not
    know.
    """
    data = path.read_bytes()
    begin = len(_MAGIC) + 1
    if data[: len(_MAGIC)] != _MAGIC or len(data) < begin + _DIGEST:
        raise ArtifactError(f"{path} is not a coded chainfx model or is cut short; save the model again.")
    if data[len(_MAGIC)] != _VERSION:
        raise ArtifactError(
            f"{path} has version {data[len(_MAGIC)]} of the coded format, this chainfx reads {_VERSION}; save it again."
        )
    content = data[begin + _DIGEST :]
    if hashlib.sha256(content).digest()[:_DIGEST] != data[begin : begin + _DIGEST]:
        raise ArtifactError(f"{path} was changed or cut short after it was saved (its SHA-256 differs); save it again.")
    try:
        return _read(content)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    except Exception as error:  # whatever a file that chainfx did not write makes zlib, json, numpy or a coder raise
        reason = (str(error).splitlines() or [""])[0]
        raise ArtifactError(
            f"{path} does not hold what chainfx writes ({type(error).__name__}: {reason}); save the model again."
        ) from error


def _read(content: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    reader = Reader(content)
    size = reader.varint()
    if size > min(_MOST_MANIFEST, _most_elements(len(content))):
        raise ArtifactError(f"its manifest of {size} bytes is too long for its size; save the model again.")
    inflate = zlib.decompressobj(-15, zdict=DICTIONARY)
    text = inflate.decompress(reader.take(reader.varint()), size + 1)
    if len(text) != size:
        raise ArtifactError("its manifest is damaged; save the model again.")
    body = unfolded(json.loads(text))
    listed = body["tensors"]
    total = sum(math.prod(entry[4]) for entry in listed if len(entry) > 4)
    if total > _most_elements(len(content)):
        raise ArtifactError(f"it names {total} elements, which is too many for its size; save the model again.")
    tensors = _tensors(reader, listed)
    if reader.left:
        raise ArtifactError(f"it goes on for {reader.left} bytes after its last tensor; save the model again.")
    body["nodes"] = [dict(zip(_NODE, node, strict=True)) for node in body["nodes"]]
    body["tensors"] = {entry[0]: _entry(entry) for entry in listed}
    return body, tensors


def _entry(listed: Sequence[Any]) -> dict[str, Any]:
    entry = {"kind": listed[1], "trains": listed[2]}
    return entry | ({"same_as": listed[3]} if len(listed) == 4 else {})


def _tensors(reader: Reader, listed: Sequence[Sequence[Any]]) -> dict[str, Tensor]:
    """All tensors that are stored; a mask is read with the weight that names it."""
    masks = {entry[5] for entry in listed if len(entry) > 5}
    found: dict[str, Tensor] = {}
    for entry in listed:
        if len(entry) < 5 or entry[0] in masks:
            continue
        shape = tuple(entry[4])
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ArtifactError(
                f"tensor {entry[0]!r} has the shape {list(shape)}, which is none; save the model again."
            )
        dtype = dtype_of(entry[3])
        masked = len(entry) > 5
        values, kept = decode_tensor(reader, shape, _numpy_type(dtype), masked=masked)
        found[entry[0]] = tensor_of(values, dtype)
        if kept is not None:
            found[entry[5]] = torch.from_numpy(np.ascontiguousarray(kept))
    return found


def _numpy_type(dtype: torch.dtype) -> "np.dtype[Any]":
    return array_of(torch.empty(0, dtype=dtype, device="cpu")).dtype
