"""From a module to a graph in train form."""

from chainfx.ir.capture.export import export_to_read
from chainfx.ir.capture.ways import CaptureReport, OpaqueLeaf, capture, capture_to_read, capture_with_report

__all__ = [
    "CaptureReport",
    "OpaqueLeaf",
    "capture",
    "capture_to_read",
    "capture_with_report",
    "export_to_read",
]
