"""A graph on disk, and what a file may name."""

from chainfx.ir.artifact.documents import FORMAT, read_document, write_document
from chainfx.ir.artifact.files import fingerprint, load_graph, save_graph
from chainfx.ir.artifact.packing import bytes_of, content_hash, pack, unpack

__all__ = [
    "FORMAT",
    "bytes_of",
    "content_hash",
    "fingerprint",
    "load_graph",
    "pack",
    "read_document",
    "save_graph",
    "unpack",
    "write_document",
]
