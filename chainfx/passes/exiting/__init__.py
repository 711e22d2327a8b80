"""What early exits are made of: heads."""

from chainfx.passes.exiting.head import ExitHead, insert_head

__all__ = [
    "ExitHead",
    "insert_head",
]
