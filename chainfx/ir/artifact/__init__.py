"""A graph on disk, and what a file may name."""

from chainfx.ir.artifact.documents import FORMAT, make_folder, read_document, write_document
from chainfx.ir.artifact.files import fingerprint, is_coded, load_graph, manifest_bytes, save_graph
from chainfx.ir.artifact.literals import dtype_of
from chainfx.ir.artifact.packing import array_of, pack, tensor_of, unpack

__all__ = [
    "FORMAT",
    "array_of",
    "dtype_of",
    "fingerprint",
    "is_coded",
    "load_graph",
    "make_folder",
    "manifest_bytes",
    "pack",
    "read_document",
    "save_graph",
    "tensor_of",
    "unpack",
    "write_document",
]
