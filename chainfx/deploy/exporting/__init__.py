"""A compressed network as files for other programs: ONNX with quantized nodes, torch.export, or AOTInductor."""

from chainfx.deploy.exporting.agreement import difference_of, disagreement, random_inputs
from chainfx.deploy.exporting.inductor import frozen, inductor_options, integer_segments, matched_layers
from chainfx.deploy.exporting.writing import ExportFormat, write_export

__all__ = [
    "ExportFormat",
    "difference_of",
    "disagreement",
    "frozen",
    "inductor_options",
    "integer_segments",
    "matched_layers",
    "random_inputs",
    "write_export",
]
