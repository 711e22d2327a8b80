"""What a network costs: exact MACs, bit operations under a named convention, and storage, counted on the graph."""

from chainfx.bitops.conventions import Convention, LayerFacts, convention_names, get_convention, register_convention
from chainfx.bitops.costs import CostReport, ExitCost
from chainfx.bitops.crosscheck import CrossCheck, cross_check
from chainfx.bitops.diff import ChangeKind, CostDiff, NodeChange
from chainfx.bitops.formulas import Call, find_formula, register_formula
from chainfx.bitops.interpreter import count
from chainfx.bitops.rows import CostRow, Uncounted

__all__ = [
    "Call",
    "ChangeKind",
    "Convention",
    "CostDiff",
    "CostReport",
    "CostRow",
    "CrossCheck",
    "ExitCost",
    "LayerFacts",
    "NodeChange",
    "Uncounted",
    "convention_names",
    "count",
    "cross_check",
    "find_formula",
    "get_convention",
    "register_convention",
    "register_formula",
]
