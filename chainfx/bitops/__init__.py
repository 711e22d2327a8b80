"""What does a network cost? MACs, bit operations under a named convention, and storage in bits, for one sample.

Everything is counted on the graph, from shapes and the widths of its quantizers, without running the network on data.
Numbers are exact, and an operator that nobody can count is listed by name and never counted as zero.

Start with :func:`count`, which gives a :class:`CostReport`: one :class:`CostRow` a node, and the totals. A report can
be printed, written as JSON (``to_dict``) or CSV (``to_csv``), compared with another one (``diff``), and priced anew
under other conventions, widths or exit rates without counting again (``reprice``). A *convention* says what a
multiply-accumulate costs in bit operations; :func:`convention_names` lists them, :func:`register_convention` adds one.
:func:`register_formula` teaches the counter a new operator. :func:`cross_check` counts a network with other tools too,
and gives the reason for every difference.
"""

from chainfx.bitops.conventions import Convention, LayerFacts, convention_names, get_convention, register_convention
from chainfx.bitops.costs import CostReport, ExitCost
from chainfx.bitops.crosscheck import UNEXPLAINED, CrossCheck, Difference, ToolCheck, cross_check
from chainfx.bitops.diff import ChangeKind, CostDiff, NodeChange
from chainfx.bitops.energy import HOROWITZ_2014, EnergyTable
from chainfx.bitops.formulas import Call, find_formula, register_formula
from chainfx.bitops.interpreter import count
from chainfx.bitops.rows import CostRow, Uncounted

__all__ = [
    "HOROWITZ_2014",
    "UNEXPLAINED",
    "Call",
    "ChangeKind",
    "Convention",
    "CostDiff",
    "CostReport",
    "CostRow",
    "CrossCheck",
    "Difference",
    "EnergyTable",
    "ExitCost",
    "LayerFacts",
    "NodeChange",
    "ToolCheck",
    "Uncounted",
    "convention_names",
    "count",
    "cross_check",
    "find_formula",
    "get_convention",
    "register_convention",
    "register_formula",
]
