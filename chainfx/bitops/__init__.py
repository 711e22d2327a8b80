"""What a network costs: exact MACs, bit operations under a named convention, and storage, counted on the graph."""

from chainfx.bitops.conventions import (
    Convention,
    LayerFacts,
    convention_names,
    get_convention,
    register_convention,
)
from chainfx.bitops.diff import CostDiff, NodeChange
from chainfx.bitops.formulas import Call, register_formula
from chainfx.bitops.interpreter import count
from chainfx.bitops.report import CostReport, CostRow, ExitCost, Uncounted
from chainfx.bitops.table import render

__all__ = [
    "Call",
    "Convention",
    "CostDiff",
    "CostReport",
    "CostRow",
    "ExitCost",
    "LayerFacts",
    "NodeChange",
    "Uncounted",
    "convention_names",
    "count",
    "get_convention",
    "register_convention",
    "register_formula",
    "render",
]
