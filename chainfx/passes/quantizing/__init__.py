"""What passes that quantize share: putting quantizers into a graph, and reading them back."""

from chainfx.passes.quantizing.network import quantize_network
from chainfx.passes.quantizing.quantizers import (
    CLIP_RULES,
    FLOAT,
    ClipRule,
    LayerWidths,
    insert_quantizers,
    scheme_of,
    widths_in,
)
from chainfx.passes.quantizing.residuals import release_residuals

__all__ = [
    "CLIP_RULES",
    "FLOAT",
    "ClipRule",
    "LayerWidths",
    "insert_quantizers",
    "quantize_network",
    "release_residuals",
    "scheme_of",
    "widths_in",
]
