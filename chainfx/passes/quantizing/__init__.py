"""What passes that quantize share: putting quantizers into a graph, and reading them back."""

from chainfx.passes.quantizing.quantizers import FLOAT, LayerWidths, insert_quantizers, widths_in

__all__ = ["FLOAT", "LayerWidths", "insert_quantizers", "widths_in"]
