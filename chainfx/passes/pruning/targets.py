"""What a network will cost without some of its channels: computed from the channel analysis."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from chainfx.bitops import Call, CostReport, CostRow, count, find_formula, get_convention
from chainfx.ir.channels import ChannelAnalysis
from chainfx.ir.graph import edit, layer_at, operator_of, ops
from chainfx.passes.pruning.selection import Keep, Removed, removed_units

__all__ = ["COSTS", "Cost", "CostModel"]

Cost = Literal["macs", "bitops", "parameters"]

COSTS: tuple[Cost, ...] = ("macs", "bitops", "parameters")


class CostModel:
    """The cost of a network of which only some units are kept.

    MACs, bit operations and parameters are computed from the analysis and equal what :func:`chainfx.bitops.count` says
    after the surgery. Bit operations are those of the convention ``strict``, the real formats of every layer: under
    the nominal one they are in proportion to the MACs.
    """

    def __init__(self, graph_module: GraphModule, analysis: ChannelAnalysis, example_inputs: Sequence[Tensor]) -> None:
        self._graph_module = graph_module
        self._analysis = analysis
        self._report: CostReport = count(graph_module, example_inputs, convention="strict")
        self._nodes = {node.name: node for node in graph_module.graph.nodes}
        self._units = {(id(edit.get_tensor(graph_module, p)), d): units for (p, d), units in analysis.slots.items()}

    def of(self, cost: Cost, keep: Keep) -> float:
        """The cost of one sample if the named groups keep only these units."""
        if cost == "parameters":
            return self._parameters(removed_units(self._analysis, keep))
        removed = removed_units(self._analysis, keep)
        report = replace(self._report, rows=tuple(self._row(row, removed) for row in self._report.rows))
        return report.macs if cost == "macs" else report.bitops

    def _row(self, row: CostRow, removed: Removed) -> CostRow:
        """The row of a node after surgery, as far as its MACs and bit operations go."""
        node = self._nodes.get(row.node)
        if row.facts is None or node is None:
            return row
        macs, outputs = self._shares(node, removed)
        if macs == 1:
            return row
        facts = replace(row.facts, macs=int(row.facts.macs * macs), fan_in=row.facts.fan_in * macs / outputs)
        return replace(row, facts=facts, bitops=get_convention("strict")(facts))

    def _shares(self, node: Node, removed: Removed) -> tuple[Fraction, Fraction]:
        """The shares of its MACs, and of its outputs, that a node keeps."""
        if node.name in self._analysis.products:
            return self._product(node, removed)
        layer = layer_at(self._graph_module, node)
        if layer is None:
            return Fraction(1), Fraction(1)
        tensor = layer.tensor
        shares = [self._share(tensor, dim, removed) for dim in (0, 1)]
        return shares[0] * shares[1], shares[layer.out_axis]

    def _share(self, tensor: Tensor, dim: int, removed: Removed) -> Fraction:
        """The share of positions along a dimension of a parameter that is kept."""
        units = self._units.get((id(tensor), dim))
        return Fraction(1) if units is None else Fraction(int((~removed[units]).sum()), len(units))

    def _product(self, node: Node, removed: Removed) -> tuple[Fraction, Fraction]:
        axes = self._analysis.products[node.name]
        formula = find_formula(operator_of(node).name)
        calls = [_call(node, [axis.kept(gone) for axis in axes]) for gone in (np.zeros_like(removed), removed)]
        macs = [formula.macs(call) if formula else 1 for call in calls]
        if not macs[0] or macs[1] is None:
            return Fraction(1), Fraction(1)
        return Fraction(macs[1], macs[0]), Fraction(calls[1].output.numel(), calls[0].output.numel())

    def _parameters(self, removed: Removed) -> int:
        total = self._report.parameters
        dims: dict[str, list[int]] = {}
        for path, dim in self._analysis.slots:
            dims.setdefault(path, []).append(dim)
        codes = _codes(self._graph_module)
        for path, cut in dims.items():
            tensor = edit.get_tensor(self._graph_module, path)
            if isinstance(tensor, nn.Parameter) or path in codes:
                kept = Fraction(tensor.numel())
                for dim in cut:
                    kept *= self._share(tensor, dim, removed)
                total -= tensor.numel() - int(kept)
        return total


def _call(node: Node, shapes: Sequence[tuple[int, ...]]) -> Call:
    """The call of a product of activations with tensors of other shapes: those of the arguments, then of the output."""
    left = iter(shapes)

    def value(each: Node) -> Any:
        found = each.meta["val"]
        return torch.empty(next(left), device="meta") if isinstance(found, Tensor) else found

    args, kwargs = map_arg((node.args, node.kwargs), value)
    return Call(args, kwargs, output=torch.empty(next(left), device="meta"))


def _codes(graph_module: GraphModule) -> set[str]:
    """The paths of buffers that hold the codes of a weight, which count as parameters."""
    calls = graph_module.graph.find_nodes(op="call_function", target=ops.look_up)
    return {str(call.args[0].target) for call in calls}
