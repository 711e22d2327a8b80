"""How a compressed network runs: integer codes, segments with batch compaction, saving and loading."""

from chainfx.deploy.model import CompressedModel, load

__all__ = [
    "CompressedModel",
    "load",
]
