"""How a compressed network runs: engines, integer codes, segments with batch compaction, saving and loading."""

from chainfx.deploy.backend import torch_backend
from chainfx.deploy.engines import EngineChoice
from chainfx.deploy.exporting import ExportFormat
from chainfx.deploy.integers import Lowered, Lowering, Machine
from chainfx.deploy.model import CompressedModel, load
from chainfx.deploy.timing import BenchReport, Latency, machine_facts, time_in_turns

__all__ = [
    "BenchReport",
    "CompressedModel",
    "EngineChoice",
    "ExportFormat",
    "Latency",
    "Lowered",
    "Lowering",
    "Machine",
    "load",
    "machine_facts",
    "time_in_turns",
    "torch_backend",
]
