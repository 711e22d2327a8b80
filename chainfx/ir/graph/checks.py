"""The rules a graph in train form keeps; checked before and after every pass."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from chainfx.coding import CODERS
from chainfx.errors import GraphError
from chainfx.ir.graph import ops
from chainfx.ir.graph.exits import exits_of, output_node
from chainfx.ir.graph.shapes import propagate_shapes, shape_of
from chainfx.ir.graph.torchao_tensors import torchao_weight

__all__ = ["check_answers", "check_rules", "verify"]

_ARGUMENTS: dict[object, int] = {
    ops.quantize_weight: 4,
    ops.quantize_activation: 4,
    ops.dequantize_weight: 4,
    ops.mask_weight: 3,
    ops.look_up: 2,
    ops.coded_weight: 2,
    ops.exit_point: 4,
    torchao_weight: 4,
}


def verify(graph_module: GraphModule, example_inputs: Sequence[Tensor]) -> None:
    """Check the graph and put the shapes of all nodes into ``node.meta["val"]``.

    The rules are those of :func:`check_rules` and :func:`check_answers`, and that the network accepts the example
    inputs. Raises :class:`GraphError` (a rule), :class:`~chainfx.errors.InputError` (the inputs).
    """
    check_rules(graph_module)
    propagate_shapes(graph_module, example_inputs)
    check_answers(graph_module)


def check_rules(graph_module: GraphModule) -> None:
    """Check what can be seen without evaluating anything; raises :class:`GraphError` that names the rule.

    The rules: the graph is well formed; dialect ops have literal arguments in range; exit names differ; a network with
    exits returns all of them, in order, then the final output.
    """
    try:
        graph_module.graph.lint()
    except RuntimeError as error:
        raise GraphError(f"the graph is not well formed: {error}; mend the pass that made it.") from error
    for node in graph_module.graph.nodes:
        _verify_node(node)
    _verify_exits(graph_module)


def check_answers(graph_module: GraphModule) -> None:
    """Check that each exit answers in the shape of the final output and that its criterion reads that shape.

    Shapes must be in ``node.meta["val"]``. Raises :class:`GraphError` that names the exit.
    """
    returned: Any = output_node(graph_module).args[0]
    for mark in exits_of(graph_module):
        shape, final = shape_of(mark.node), shape_of(returned[-1])
        if shape != final:
            raise GraphError(
                f"exit {mark.name!r} answers with shape {shape}, the network with {final}; mend the pass that made it."
            )
        if len(shape) != ops.dims_read(mark.criterion):
            raise GraphError(
                f"exit {mark.name!r} answers with shape {shape}, but its criterion {mark.criterion!r} reads "
                f"{ops.dims_read(mark.criterion)} dimensions; mend the pass that made it."
            )


def _verify_node(node: Node) -> None:
    needed = _ARGUMENTS.get(node.target)
    if needed is None:
        return
    if len(node.args) != needed or node.kwargs:
        raise GraphError(
            f"node {node.name!r} must give all {needed} arguments by position; mend the pass that made it."
        )
    for rule, holds in _rules(node):
        if not holds:
            raise GraphError(f"node {node.name!r}: {rule}, but its arguments are {node.args[1:]}; mend the pass.")


def _rules(node: Node) -> list[tuple[str, bool]]:
    literals = node.args[1:]
    if node.target is ops.quantize_weight:
        bits, scheme, axis = literals
        return [
            ("bits must be a literal 1..8", bits in ops.WIDTHS),
            (f"scheme must be one of {', '.join(ops.SCHEMES)}", scheme in ops.SCHEMES),
            ("axis must be None or a literal number", axis is None or isinstance(axis, int)),
        ]
    if node.target is ops.quantize_activation:
        clip, bits, signed = literals
        return [
            ("clip must be a parameter", _is_tensor(clip)),
            ("bits must be a literal 1..8", bits in ops.WIDTHS),
            ("signed must be a literal truth value", isinstance(signed, bool)),
        ]
    if node.target is ops.exit_point:
        name, threshold, criterion = literals
        return [
            ("an exit has a literal name", isinstance(name, str) and bool(name)),
            ("threshold must be a literal number", isinstance(threshold, int | float)),
            (f"criterion must be one of {', '.join(ops.CRITERIA)}", criterion in ops.CRITERIA),
        ]
    if node.target is ops.mask_weight:
        mask, pattern = literals
        return [
            ("mask must be a tensor of the network", _is_tensor(mask)),
            ("pattern must be 'unstructured' or a literal like '2:4'", ops.is_pattern(pattern)),
        ]
    if node.target is ops.look_up:
        return [("codebook must be a tensor of the network", _is_tensor(literals[0]))]
    if node.target is ops.coded_weight:
        return [(f"coder must be one of {', '.join(CODERS)}", literals[0] in CODERS)]
    if node.target is torchao_weight:
        text, bits, reads = literals
        return [
            ("its parts must be tensors of the network", all(map(_is_tensor, _sequence(node.args[0])))),
            ("its text must be a literal", isinstance(text, str)),
            ("bits must be a literal 1..8", bits in ops.WIDTHS),
            ("what it reads must be a literal 1..32", isinstance(reads, int) and 1 <= reads <= 32),
        ]
    bits, scheme = literals[1:]
    return [
        ("bits must be a literal 1..8", bits in ops.WIDTHS),
        (f"scheme must be one of {', '.join(ops.SCHEMES)}", scheme in ops.SCHEMES),
    ]


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Node) and value.op == "get_attr"


def _verify_exits(graph_module: GraphModule) -> None:
    marks = exits_of(graph_module)
    names = [mark.name for mark in marks]
    if len(set(names)) < len(names):
        raise GraphError(f"exit names must differ, but they are {', '.join(names)}; mend the pass that made them.")
    returned = output_node(graph_module).args[0]
    expected = [mark.node for mark in marks]
    if marks and (not isinstance(returned, tuple | list) or list(returned[:-1]) != expected):
        raise GraphError(
            f"a network with exits returns them in order and then its final output, "
            f"but this one returns {returned}; mend the pass that changed the output."
        )
