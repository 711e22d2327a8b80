"""The counter: it goes over the nodes of a graph once, with shapes and number formats, without data or arithmetic."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from chainfx.bitops.branches import either, inline_branches
from chainfx.bitops.conventions import LayerFacts, get_convention, nominal_formats
from chainfx.bitops.costs import CostReport
from chainfx.bitops.formulas import Call, Formula, find_formula
from chainfx.bitops.inside import work_inside
from chainfx.bitops.memory import peak_activation_bits
from chainfx.bitops.rates import Rates
from chainfx.bitops.reading import Reading, reading_of, tensors_in
from chainfx.bitops.rows import CostRow, Uncounted
from chainfx.bitops.sparsity import DENSE, Zeros, zeros_of
from chainfx.bitops.storage import Storage, storage_of
from chainfx.bitops.widths import LAYER_KEYS, format_of_dtype, formats_of, literal, widest
from chainfx.errors import CostError
from chainfx.ir.graph import (
    DEPTHWISE,
    FLOAT32,
    Format,
    Trait,
    evaluating,
    exits_of,
    names_with,
    origin,
    propagate_shapes,
    segments,
    torchao_weight_of,
)

__all__ = ["count"]

_ARITHMETIC = names_with(Trait.ARITHMETIC)
_CONSTRUCTORS = names_with(Trait.CONSTRUCTOR)
_Operand = tuple[Any, Any]  # as it is written in the graph, often a node, and its value, often a tensor without data
_FREE = names_with(Trait.MOVEMENT) | _CONSTRUCTORS  # neither multiply-accumulates nor arithmetic on elements


class _Work(NamedTuple):
    """What one node does for one sample, before a convention prices it.

    ``path``: of the weight of a convolution or linear layer with one of its own, else empty.
    """

    node: Node
    operator: str
    macs: int
    elementwise: int
    fan_in: Fraction = Fraction(1)
    weight: Format = FLOAT32
    activation: Format = FLOAT32
    zeros: Zeros = DENSE
    path: str = ""
    read_elements: tuple[int, int] = (0, 0)


def count(
    graph_module: GraphModule,
    example_inputs: Sequence[Tensor],
    convention: str = "mac_bw_ba",
    exit_rates: Mapping[str, float] | None = None,
    encodings: Sequence[str] = ("dense", "nominal"),
) -> CostReport:
    """Count what a network costs for ONE sample, in eval mode.

    ``example_inputs``: positional, batch first; only shapes and dtypes are read, and every count is divided by the size
    of axis 0 of the first one. ``convention``: the price of a MAC, see :mod:`chainfx.bitops.conventions`.
    ``exit_rates``: share, in [0, 1], of all samples that leave at each exit by name; the rest reach the end. Of a
    ``torch.cond``, by the name of its node, it is the share of all samples that takes the true branch.
    ``encodings``: how stored weights are encoded, see :mod:`chainfx.bitops.storage`; ``dense`` and ``nominal`` are
    always there, the others may need the values of weights and masks.

    What does not depend on the values of an input (an operation on weights alone) is computed once, not for every
    sample, and costs nothing here. What no formula knows, such as somebody's own function, is looked into; what then
    has something unknown in it is listed in ``uncounted``. Nothing is executed on data, and nothing changes but the
    shapes cached in ``node.meta``. No data is read but that of masks.

    Raises :class:`~chainfx.errors.InputError` when the inputs do not fit, :class:`CostError` on an unknown convention
    or encoding, a quantizer without literal bits, exit rates that are missing, unknown, out of range or above 1 in sum,
    a mask without data, and work that does not divide by the batch.

    >>> import torch.fx
    >>> from torch import nn
    >>> report = count(torch.fx.symbolic_trace(nn.Linear(8, 4)), (torch.zeros(2, 8),))
    >>> report.macs, report.bitops
    (32, 32768)
    """
    price = get_convention(convention)
    graph_module, branch_of, conditions = inline_branches(graph_module)
    exits = tuple(mark.name for mark in exits_of(graph_module))
    rates = Rates(exits, None, conditions, None).given(exit_rates)
    with evaluating(graph_module) as modules:
        propagate_shapes(graph_module, example_inputs, modules)
    reading = reading_of(graph_module, modules)
    batch = example_inputs[0].shape[0] if example_inputs and example_inputs[0].dim() else 1
    formats = formats_of(reading)
    works, uncounted = _works(reading, batch, branch_of, formats)
    segment_of = {node: index for index, part in enumerate(segments(graph_module)) for node in part}
    facts, nominal = _facts(works, segment_of)
    storage = storage_of(reading, encodings, nominal[0].bits)
    rows = []
    for work in works:
        weight = _stored(reading, work.path, storage)
        layer = facts.get(work.node)
        bitops = price(layer) if layer else 0
        output, branch = reading.tensors[work.node], branch_of.get(work.node, "")
        rows.append(_row(work, output, layer, bitops, segment_of[work.node], branch, weight))
    return CostReport(
        convention,
        tuple(rows),
        tuple(uncounted),
        storage.bits,
        storage.parameters,
        exits,
        rates.exit_rates,
        conditions,
        rates.true_rates,
        tuple(tuple(tensor.shape) for tensor in example_inputs),
        tuple(str(tensor.dtype).removeprefix("torch.") for tensor in example_inputs),
        peak_activation_bits(reading, formats) // batch,
    )


def _stored(reading: Reading, path: str, storage: Storage) -> tuple[str, int]:
    """The name of a layer's weight, and how many elements follow its width: none of a weight that is computed."""
    return storage.weights.get(id(reading.held_at(path)), (path, 0)) if path else ("", 0)


def _works(
    reading: Reading, batch: int, branch_of: Mapping[Node, str], formats: Mapping[Node, Format]
) -> tuple[list[_Work], list[Uncounted]]:
    """The nodes that do work for every sample, and those of which nobody knows how much."""
    varies = set(reading.graph_module.graph.find_nodes(op="placeholder"))  # whose values depend on those of an input
    works: list[_Work] = []
    uncounted: list[Uncounted] = []
    for node, (key, operator, _) in reading.operators.items():
        if varies.isdisjoint(reading.sources[node]):
            continue
        if node.target is either:
            varies.add(node)
            continue
        tensors = reading.tensors[node]
        varies.update(_made_to_vary(node, key, tensors))
        formula = find_formula(key)
        work = None
        if formula is not None:
            work = _multiplied(reading, node, formula, formats=formats, batch=batch, varies=varies)
        elif key in _ARITHMETIC:
            work = _Work(node, operator, 0, _per_sample(_elements(reading, node, varies), batch, node))
        if work is None and key not in _FREE and _touches_tensors(reading, node):
            work = _looked_into(reading, node, varies, batch)
        if work is not None:
            if work.macs or work.elementwise or tensors:  # not what only checks, as guards do
                works.append(work)
        elif formula is not None or (key not in _FREE and _touches_tensors(reading, node)):
            what = "opaque module" if node.op == "call_module" else "operator without a formula"
            path = _module_path(node, branch_of.get(node, ""))
            uncounted.append(Uncounted(node.name, operator, path, what))
    return works, uncounted


def _looked_into(reading: Reading, node: Node, varies: set[Node], batch: int) -> _Work | None:
    """The work inside of what no formula knows; ``None`` if there is something unknown in it."""
    inside = work_inside(node, reading.called_by(node), varies)
    if inside is None or inside.unknown:
        return None
    macs, elementwise = (_per_sample(total, batch, node) for total in (inside.macs, inside.elementwise))
    fan_in = Fraction(inside.macs, _outputs(reading.tensors[node]))
    return _Work(node, reading.operators[node].spelling, macs, elementwise, fan_in)


def _outputs(tensors: Sequence[Tensor]) -> int:
    """The elements of the first of the tensors that a node gives; at least 1."""
    return max(1, tensors[0].numel()) if tensors else 1


def _made_to_vary(node: Node, key: str, tensors: Sequence[Tensor]) -> list[Node]:
    """The nodes that depend on the sample because of this one: itself, and the tensor it writes in place."""
    changed = [node] if tensors and key not in _CONSTRUCTORS else []
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    writes = key == "setitem" or (node.op != "call_module" and name.endswith("_") and not name.endswith("__"))
    return changed + [source for source in node.args[:1] if writes and isinstance(source, Node)]


def _touches_tensors(reading: Reading, node: Node) -> bool:
    """Whether a node gives tensors, or reads them without giving anything: reading sizes is no arithmetic."""
    reads = any(reading.tensors[source] for source in reading.sources[node])
    return bool(reading.tensors[node]) or (reads and node.meta.get("val") is None)


def _multiplied(
    reading: Reading,
    node: Node,
    formula: Formula,
    *,
    formats: Mapping[Node, Format],
    batch: int,
    varies: set[Node],
) -> _Work | None:
    """The work of a node whose operator has a formula; ``None`` if the formula does not know this form of call."""
    key, operator, _ = reading.operators[node]
    module, output, tensors = reading.called_by(node), node.meta.get("val"), reading.tensors[node]
    values = map_arg((node.args, node.kwargs), lambda source: source.meta.get("val"))
    call = Call(*values, output=output, module=module)
    macs = formula.macs(call)
    if macs is None:
        return None
    written = Call(node.args, node.kwargs, output=output, module=module)
    weights, activations = (
        [(written.get(*slot), call.get(*slot)) for slot in slots] for slots in (formula.weight, formula.activation)
    )
    layer, transposed = key in LAYER_KEYS, key == "conv_transpose"
    groups = _groups(node, call) if layer else 1
    return _Work(
        node,
        operator,
        _per_sample(macs, batch, node),
        0,
        Fraction(macs, _outputs(tensors)),
        _operand_format(weights, tensors, formats),
        _read_in(node, _operand_format(activations, tensors, formats), formats),
        zeros_of(reading.graph_module, weights[0][0], groups, transposed=transposed) if len(weights) == 1 else DENSE,
        _weight_path(node, weights[0][0]) if layer else "",
        (_read(weights, batch, varies), _read(activations, batch, varies)),
    )


def _read(operands: Sequence[_Operand], batch: int, varies: set[Node]) -> int:
    """The elements of operands for one sample: all of a weight, its share of what has a batch."""
    total = 0
    for written, value in operands:
        elements = sum(map(Tensor.numel, tensors_in(value)))
        total += elements // batch if written in varies else elements
    return total


def _read_in(node: Node, given: Format, formats: Mapping[Node, Format]) -> Format:
    """The format that a layer reads its input in: kernels of torchao may round it to fewer bits than it has."""
    weight = torchao_weight_of(node)
    reads = given.bits if weight is None else literal(weight, 3, "reads")
    return given if weight is None or reads >= given.bits else Format(reads, formats[weight].kind)


def _groups(node: Node, call: Call) -> int:
    """The number of groups of a convolution; 1 for linear."""
    if node.target in DEPTHWISE.values():
        return call.shape(1, "weight")[0]
    return call.get(6, "groups") or 1


def _weight_path(node: Node, weight: Any) -> str:
    """The path of a layer's own weight, empty if it is computed."""
    if node.op == "call_module":
        return f"{node.target}.weight"
    of_torchao = torchao_weight_of(node)
    stored = origin(weight) if of_torchao is None else of_torchao.all_input_nodes[0]
    return "" if stored is None else str(stored.target)


def _operand_format(operands: Sequence[_Operand], output: Sequence[Tensor], formats: Mapping[Node, Format]) -> Format:
    """The widest format among operands; that of the output's dtype for what is computed inside."""
    found = [formats[written] for written, _ in operands if isinstance(written, Node)]
    found += [format_of_dtype(written.dtype) for written, _ in operands if isinstance(written, Tensor)]
    return widest(found or [format_of_dtype(tensor.dtype) for tensor in output[:1]])


def _elements(reading: Reading, node: Node, varies: set[Node]) -> int:
    """The elements of the largest tensor among the output and the inputs that depend on the sample."""
    return max(reading.elements[each] for each in (node, *reading.sources[node]) if each is node or each in varies)


def _per_sample(total: int, batch: int, node: Node) -> int:
    share, rest = divmod(total, batch)
    if rest:
        raise CostError(
            f"the work of node {node.name!r}, {total}, does not divide by the batch of {batch}; "
            "count with a batch of one sample."
        )
    return share


def _facts(works: list[_Work], segment_of: Mapping[Node, int]) -> tuple[dict[Node, LayerFacts], tuple[Format, Format]]:
    """The facts of every node with MACs, and the nominal formats.

    First and last are layers with a weight of their own, last after all exits.
    """
    layers = [work for work in works if work.macs]
    nominal = nominal_formats((work.macs, work.weight, work.activation) for work in layers)
    owners = [work.node for work in layers if work.path or work.node.op == "call_module"]
    first = owners[0] if owners else None
    at_end = max((segment_of[node] for node in owners), default=0)
    last = next((node for node in reversed(owners) if segment_of[node] == at_end), None)
    facts = {
        work.node: LayerFacts(
            work.macs,
            work.fan_in,
            work.weight,
            work.activation,
            nominal,
            work.zeros.kept_outputs,
            work.zeros.kept_inputs,
            work.zeros.nonzero,
            first=work.node is first,
            last=work.node is last,
        )
        for work in layers
    }
    return facts, nominal


def _row(
    work: _Work,
    output: Sequence[Tensor],
    facts: LayerFacts | None,
    bitops: int | Fraction,
    segment: int,
    branch: str,
    weight: tuple[str, int],
) -> CostRow:
    return CostRow(
        node=work.node.name,
        operator=work.operator,
        module=_module_path(work.node, branch, work.path),
        shape=tuple(map(int, output[0].shape)) if output else (),
        elementwise=work.elementwise,
        bitops=bitops,
        segment=segment,
        branch=branch,
        facts=facts,
        pattern=work.zeros.pattern,
        weight=weight[0],
        weight_elements=weight[1],
        read_elements=work.read_elements,
    )


def _module_path(node: Node, branch: str, weight: str = "") -> str:
    """The path of the module a node belongs to, as far as the graph tells, inside of its branch if it is in one."""
    if node.op == "call_module":
        path = str(node.target)
    elif weight:
        path = weight.rpartition(".")[0]
    else:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        path = str(stack[-1][0]) if stack else ""
    return f"{branch}.{path}" if branch and path else branch or path
