"""A graph on disk, and what a file may name."""

from chainfx.ir.artifact.documents import FORMAT, make_folder, read_document, write_document
from chainfx.ir.artifact.files import fingerprint, load_graph, save_graph
from chainfx.ir.artifact.literals import dtype_of
from chainfx.ir.artifact.packing import pack, unpack

__all__ = [
    "FORMAT",
    "dtype_of",
    "fingerprint",
    "load_graph",
    "make_folder",
    "pack",
    "read_document",
    "save_graph",
    "unpack",
    "write_document",
]
