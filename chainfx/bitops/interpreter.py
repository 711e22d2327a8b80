"""The counter: one pass over the nodes of a graph with shapes and formats, no data and no arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch.fx
from torch import Tensor
from torch.fx import GraphModule, Node

from chainfx.bitops.conventions import LayerFacts, get_convention, nominal_formats
from chainfx.bitops.formulas import Call, Formula, Slot, find_formula
from chainfx.bitops.operators import CONSTRUCTORS, ELEMENTWISE, MOVEMENT, key_of
from chainfx.bitops.report import CostReport, CostRow, Uncounted
from chainfx.bitops.storage import storage_of
from chainfx.bitops.widths import format_of_dtype, formats_of, tensors_in, widest
from chainfx.errors import CostError
from chainfx.ir.edit import LAYERS, evaluating, origin
from chainfx.ir.exits import exits_of, segments
from chainfx.ir.formats import FLOAT32, Format
from chainfx.ir.shapes import propagate_shapes

__all__ = ["count"]


@dataclass(frozen=True, slots=True)
class _Work:
    """What one node does for one sample, before a convention prices it."""

    node: Node
    operator: str
    macs: int
    elementwise: int
    fan_in: Fraction = Fraction(1)
    weight: Format = FLOAT32
    activation: Format = FLOAT32


def count(
    graph_module: GraphModule,
    example_inputs: Sequence[Tensor],
    convention: str = "mac_bw_ba",
    exit_rates: Mapping[str, float] | None = None,
) -> CostReport:
    """Count what a network costs for ONE sample, in eval mode.

    ``example_inputs``: positional, batch first; only shapes and dtypes are read, and every count is divided by the size
    of axis 0 of the first one. ``convention``: the price of a MAC, see :mod:`chainfx.bitops.conventions`.
    ``exit_rates``: share, in [0, 1], of all samples that leave at each exit by name; the rest reach the end.

    What does not depend on the values of an input (an operation on weights alone) is computed once, not for every
    sample, and costs nothing here. Operators without a formula are listed in ``uncounted``. Nothing is executed, and
    nothing changes but the shapes cached in ``node.meta``.

    Raises :class:`~chainfx.errors.InputError` when the inputs do not fit, :class:`CostError` on an unknown convention,
    a quantizer without literal bits, exit rates that are missing, unknown, out of range or above 1 in sum, and work
    that does not divide by the batch.

    >>> from torch import nn
    >>> report = count(torch.fx.symbolic_trace(nn.Linear(8, 4)), (torch.zeros(2, 8),))
    >>> report.macs, report.bitops
    (32, 32768)
    """
    price = get_convention(convention)
    exits = tuple(mark.name for mark in exits_of(graph_module))
    rates = _checked_rates(exits, exit_rates)
    with evaluating(graph_module):
        propagate_shapes(graph_module, example_inputs)
    batch = example_inputs[0].shape[0] if example_inputs and example_inputs[0].dim() else 1
    works, uncounted = _works(graph_module, batch)
    segment_of = {node: index for index, part in enumerate(segments(graph_module)) for node in part}
    facts = _facts(works, segment_of)
    storage = storage_of(graph_module)
    rows = tuple(
        _row(work, segment_of[work.node], price(facts[work.node]) if work.node in facts else 0) for work in works
    )
    return CostReport(convention, rows, tuple(uncounted), storage.bits, storage.parameters, exits, rates)


def _checked_rates(exits: tuple[str, ...], rates: Mapping[str, float] | None) -> tuple[float, ...] | None:
    """The rates in the order of the exits; raises :class:`CostError` naming the exit that is wrong."""
    if rates is None:
        return None
    for name in sorted(rates):
        if name not in exits:
            known = f"its exits are {', '.join(exits)}" if exits else "it has no exits"
            raise CostError(f"exit_rates names {name!r}, which is no exit of the network; {known}.")
    reached = 1.0
    for name in exits:
        if name not in rates:
            raise CostError(f"the exit rate of {name!r} is missing; give the share of all samples that leave there.")
        if not 0 <= rates[name] <= 1:
            raise CostError(f"the exit rate of {name!r} is {rates[name]}; it is a share of all samples, from 0 to 1.")
        reached -= rates[name]
        if reached < -1e-9:
            total = sum(rates[other] for other in exits)
            raise CostError(
                f"the exit rates add up to {total:.6g}, above 1 from {name!r} on; "
                "give shares of all samples, not of those that reach an exit."
            )
    return tuple(float(rates[name]) for name in exits)


def _works(graph_module: GraphModule, batch: int) -> tuple[list[_Work], list[Uncounted]]:
    """The nodes that do work for every sample, and those of which nobody knows how much."""
    formats = formats_of(graph_module)
    varies = set(graph_module.graph.find_nodes(op="placeholder"))  # nodes whose values depend on those of an input
    works: list[_Work] = []
    uncounted: list[Uncounted] = []
    for node in graph_module.graph.nodes:
        if not node.op.startswith("call") or varies.isdisjoint(node.all_input_nodes):
            continue
        key, operator = key_of(graph_module, node)
        varies.update(_made_to_vary(node, key))
        formula = find_formula(key) if key else None
        work = None
        if formula is not None:
            work = _multiplied(graph_module, node, operator, formula, formats=formats, batch=batch)
        elif key in ELEMENTWISE:
            work = _Work(node, operator, 0, _per_sample(_elements(node, varies), batch, node))
        if work is not None:
            works.append(work)
        elif formula is not None or (key not in MOVEMENT | CONSTRUCTORS and _touches_tensors(node)):
            what = "opaque module" if node.op == "call_module" else "operator without a formula"
            uncounted.append(Uncounted(node.name, operator, _module_path(node), what))
    return works, uncounted


def _made_to_vary(node: Node, key: str | None) -> list[Node]:
    """The nodes that depend on the sample because of this one: itself, and the tensor it writes in place."""
    changed = [node] if tensors_in(node.meta.get("val")) and key not in CONSTRUCTORS else []
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    writes = key == "setitem" or (node.op != "call_module" and name.endswith("_") and not name.endswith("__"))
    return changed + [source for source in node.args[:1] if writes and isinstance(source, Node)]


def _touches_tensors(node: Node) -> bool:
    """Whether a node gives tensors, or reads them without giving anything: reading sizes is no arithmetic."""
    reads = any(tensors_in(source.meta.get("val")) for source in node.all_input_nodes)
    return bool(tensors_in(node.meta.get("val"))) or (reads and node.meta.get("val") is None)


def _multiplied(
    graph_module: GraphModule,
    node: Node,
    operator: str,
    formula: Formula,
    *,
    formats: Mapping[Node, Format],
    batch: int,
) -> _Work | None:
    """The work of a node whose operator has a formula; ``None`` if the formula does not know this form of call."""
    module = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
    value = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta.get("val"))
    output = node.meta.get("val")
    macs = formula.macs(Call(*value, output=output, module=module))
    if macs is None:
        return None
    written = Call(node.args, node.kwargs, output=output, module=module)
    outputs = sum(tensor.numel() for tensor in tensors_in(output)[:1])
    return _Work(
        node,
        operator,
        _per_sample(macs, batch, node),
        0,
        Fraction(macs, max(outputs, 1)),
        _operand_format(written, formula.weight, formats),
        _operand_format(written, formula.activation, formats),
    )


def _operand_format(call: Call, slots: tuple[Slot, ...], formats: Mapping[Node, Format]) -> Format:
    """The widest format among the arguments in ``slots``; that of the output's dtype for what is computed inside."""
    operands = [call.get(position, name) for position, name in slots]
    found = [formats[operand] for operand in operands if isinstance(operand, Node)]
    found += [format_of_dtype(operand.dtype) for operand in operands if isinstance(operand, Tensor)]
    return widest(found or [format_of_dtype(tensor.dtype) for tensor in tensors_in(call.output)[:1]])


def _elements(node: Node, varies: set[Node]) -> int:
    """The elements of the largest tensor among the output and the inputs that depend on the sample."""
    sources = [node, *(source for source in node.all_input_nodes if source in varies)]
    return max((tensor.numel() for source in sources for tensor in tensors_in(source.meta.get("val"))), default=0)


def _per_sample(total: int, batch: int, node: Node) -> int:
    share, rest = divmod(total, batch)
    if rest:
        raise CostError(
            f"the work of node {node.name!r}, {total}, does not divide by the batch of {batch}; "
            "count with a batch of one sample."
        )
    return share


def _facts(works: list[_Work], segment_of: Mapping[Node, int]) -> dict[Node, LayerFacts]:
    """The facts of every node with MACs; first and last are layers with a weight of their own, last after all exits."""
    layers = [work for work in works if work.macs]
    nominal = nominal_formats((work.macs, work.weight, work.activation) for work in layers)
    owners = [work.node for work in layers if _owns_weight(work.node)]
    first = owners[0] if owners else None
    last = max(owners, key=lambda node: segment_of[node], default=None)
    if last is not None:
        last = [node for node in owners if segment_of[node] == segment_of[last]][-1]
    return {
        work.node: LayerFacts(
            work.macs,
            work.fan_in,
            work.weight,
            work.activation,
            nominal,
            first=work.node is first,
            last=work.node is last,
        )
        for work in layers
    }


def _owns_weight(node: Node) -> bool:
    return node.op == "call_module" or (node.target in LAYERS and origin(node.args[1]) is not None)


def _row(work: _Work, segment: int, bitops: int | Fraction) -> CostRow:
    output = tensors_in(work.node.meta.get("val"))
    return CostRow(
        node=work.node.name,
        operator=work.operator,
        module=_module_path(work.node),
        shape=tuple(int(size) for size in output[0].shape) if output else (),
        macs=work.macs,
        elementwise=work.elementwise,
        weight_bits=work.weight.bits if work.macs else None,
        activation_bits=work.activation.bits if work.macs else None,
        bitops=bitops,
        segment=segment,
    )


def _module_path(node: Node) -> str:
    """The path of the module a node belongs to, as far as the graph tells; empty if it does not."""
    if node.op == "call_module":
        return str(node.target)
    if node.target in LAYERS and len(node.args) > 1 and (weight := origin(node.args[1])) is not None:
        return str(weight.target).rpartition(".")[0]
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""
