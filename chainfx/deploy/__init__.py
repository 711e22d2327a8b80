"""How a compressed network runs: integer codes, stages with batch compaction, saving and loading."""

from chainfx.deploy.model import CompressedModel, load

__all__ = ["CompressedModel", "load"]
