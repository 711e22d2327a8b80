"""A compressed network as files for other programs: ONNX with quantized nodes, or torch.export with int8 weights."""

from chainfx.deploy.exporting.writing import ExportFormat, write_export

__all__ = ["ExportFormat", "write_export"]
