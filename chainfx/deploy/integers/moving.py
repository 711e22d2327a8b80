"""Quantizers moved up through what only moves values or takes the greatest, so that it can work on codes.

A quantizer never gives a larger value for a smaller one, so the greatest of quantized values is the quantized greatest:
``quantize(max_pool(x)) = max_pool(quantize(x))``, exactly; the same holds for a value that is only moved. And an
unsigned quantizer gives 0 for all that is below 0, as ReLU does: ``quantize(relu(x)) = quantize(x)``.
"""

import math
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from chainfx.deploy.integers.activations import activation_of, is_quantizer
from chainfx.deploy.integers.grids import Grid, grid_of
from chainfx.ir.graph import changes_in_place, changes_what_is_used, edit, operator_of, ops

__all__ = ["grid_at", "holds_codes", "keeps_codes", "move_quantizers", "operands", "window_of"]

_MOVES = frozenset(
    ["cat", "contiguous", "flatten", "identity", "permute", "reshape", "squeeze", "transpose", "unsqueeze"]
)
_DROPS = ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")
_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


def move_quantizers(graph_module: GraphModule) -> None:
    """Move every quantizer of an activation as far up as it can go; the graph computes the same, bit for bit.

    Expects eval mode, and shapes in ``node.meta["val"]``.
    """
    waiting = [node for node in graph_module.graph.nodes if is_quantizer(node)]
    while waiting:
        node = waiting.pop()
        if node.users:
            waiting.extend(_moved(graph_module, node))


def keeps_codes(graph_module: GraphModule, node: Node) -> bool:
    """Whether a node computes of values what it would compute of their codes, if these have one grid."""
    if node.op not in ("call_function", "call_method", "call_module") or changes_in_place(node, graph_module):
        return False
    name = operator_of(node, graph_module.get_submodule).name
    if name in _DROPS:  # a function may drop in eval mode too
        return node.op == "call_module"
    return name in _MOVES or (name == "max_pool" and window_of(graph_module, node) is not None)


def holds_codes(graph_module: GraphModule, node: Node) -> bool:
    """Whether the values of a node are those of one quantizer, moved by nothing or by what works on codes."""
    if is_quantizer(node):
        return True
    if not keeps_codes(graph_module, node) or not operands(node):
        return False
    beneath = operands(node)
    grids = {grid_at(graph_module, each) for each in beneath if holds_codes(graph_module, each)}
    return len(grids) == 1 and all(holds_codes(graph_module, each) for each in beneath)


def grid_at(graph_module: GraphModule, node: Node) -> Grid:
    """The grid of a node that :func:`holds_codes`."""
    while not is_quantizer(node):
        node = operands(node)[0]
    return grid_of(graph_module, node)


def window_of(graph_module: GraphModule, node: Node) -> tuple[tuple[list[int], ...], bool] | None:
    """The size, stride, padding and dilation of max pooling over two axes, and whether it rounds sizes up.

    ``None`` if it pools over other axes, or returns indices too.
    """
    if operator_of(node, graph_module.get_submodule).rank != 2:
        return None
    module = edit.module_of(graph_module, node, nn.MaxPool2d)
    given = vars(module) if module is not None else dict(zip(_OPTIONS, node.args[1:], strict=False)) | node.kwargs
    if given.get("return_indices"):
        return None
    size = _two(given["kernel_size"])
    window = (size, _two(given.get("stride") or size), _two(given.get("padding", 0)), _two(given.get("dilation", 1)))
    return window, bool(given.get("ceil_mode", False))


def operands(node: Node) -> list[Node]:
    """The tensors that a node reads; sizes among its arguments are numbers."""
    return [each for each in node.all_input_nodes if isinstance(each.meta.get("val"), Tensor)]


def _two(option: Any) -> list[int]:
    return [option, option] if isinstance(option, int) else [int(option[0]), int(option[-1])]


def _moved(graph_module: GraphModule, quantizer: Node) -> list[Node]:
    """Move a quantizer, with all that are equal to it, above what it reads; returns those that may go further."""
    source = edit.input_of(quantizer)
    if not all(_is_equal(user, quantizer) for user in source.users):
        return []
    implied = _is_implied(graph_module, source, quantizer)
    if not implied and not keeps_codes(graph_module, source):
        return []
    graph, made = source.graph, dict[Node, Node]()
    with graph.inserting_before(source):
        for operand in operands(source):
            clip = graph.node_copy(edit.input_of(quantizer, 1))
            made[operand] = graph.call_function(ops.quantize_activation, (operand, clip, *quantizer.args[2:]))
            made[operand].meta["val"] = operand.meta["val"]
        if implied:
            (moved,) = made.values()
        else:
            moved = graph.node_copy(source, lambda node: made.get(node, node))
    for user in list(source.users):
        user.replace_all_uses_with(moved)
        graph.erase_node(user)
    graph.erase_node(source)  # else it would count as a reader of what it reads
    return list(made.values())


def _is_equal(user: Node, quantizer: Node) -> bool:
    clips = [edit.input_of(node, 1).target for node in (user, quantizer) if is_quantizer(node)]
    return len(clips) == 2 and clips[0] == clips[1] and user.args[2:] == quantizer.args[2:]


def _is_implied(graph_module: GraphModule, node: Node, quantizer: Node) -> bool:
    """Whether an unsigned quantizer clips whatever an activation clips: ReLU, or a bound that is not below its own."""
    if quantizer.args[3] or changes_what_is_used(node, graph_module):
        return False
    activation = activation_of(graph_module, node)
    if activation is None or activation[0] not in ("relu", "hardtanh"):
        return False
    least, greatest = activation[1] or (0.0, math.inf)
    return least <= 0 and greatest >= grid_of(graph_module, quantizer).bounds()[1]
