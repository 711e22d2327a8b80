"""A graph on disk, and what a file may name."""

from chainfx.ir.artifact.files import FORMAT, fingerprint, load_graph, save_graph
from chainfx.ir.artifact.literals import dtype_of
from chainfx.ir.artifact.packing import pack, unpack

__all__ = [
    "FORMAT",
    "dtype_of",
    "fingerprint",
    "load_graph",
    "pack",
    "save_graph",
    "unpack",
]
