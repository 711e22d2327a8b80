"""Skip connections: additions that read what the layers beside them read, quantized."""

from typing import Any

from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from chainfx.ir.graph import changes_in_place, edit, layer_at, ops, summands_of

__all__ = ["quantize_residuals", "release_residuals"]


def quantize_residuals(graph_module: GraphModule) -> None:
    """Let every addition that ends a skip connection read the quantized value of what it skips with.

    It does so where that value is there, because a layer reads it, and where the other summand is what a quantized
    layer gives, with a BatchNorm or without: then the whole block can be computed in integers. Of several quantizers of
    one value the widest is taken. Expects shapes in ``node.meta["val"]``.
    """
    for node in graph_module.graph.nodes:
        summands = summands_of(graph_module, node)
        if summands is None:
            continue
        for at, (skipped, other) in enumerate((summands, summands[::-1])):
            quantized = [user for user in skipped.users if _is_quantizer(user) and user < node]
            written_over = at == 0 and changes_in_place(node, graph_module)
            if quantized and not written_over and _is_of_quantized_layer(graph_module, other):
                node.update_arg(at, max(quantized, key=_bits))


def release_residuals(graph_module: GraphModule) -> None:
    """Let additions read the values themselves again whose quantizers no layer reads any more."""
    for quantizer in graph_module.graph.find_nodes(op="call_function", target=ops.quantize_activation):
        if not any(layer_at(graph_module, user) for user in quantizer.users):
            quantizer.replace_all_uses_with(edit.input_of(quantizer), lambda user: _is_sum(graph_module, user))


def _is_quantizer(node: Node) -> bool:
    return node.target is ops.quantize_activation


def _bits(quantizer: Node) -> int:
    literals: tuple[Any, ...] = quantizer.args[2:]
    return int(literals[0])


def _is_sum(graph_module: GraphModule, node: Node) -> bool:
    return summands_of(graph_module, node) is not None


def _is_of_quantized_layer(graph_module: GraphModule, node: Node) -> bool:
    """Whether a node is a layer with quantized weight and input, or the BatchNorm of one."""
    if edit.module_of(graph_module, node, _BatchNorm) is not None:
        node = edit.input_of(node)
    layer = layer_at(graph_module, node)
    return layer is not None and layer.weight_quantizer is not None and layer.input_quantizer is not None
