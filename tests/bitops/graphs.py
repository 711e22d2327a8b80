"""Small graphs for the tests of the counter."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node, symbolic_trace

from chainfx.bitops import count
from chainfx.ir.graph import ops
from chainfx.ir.graph.edit import layers_of, set_tensor


def graph_of(function: Callable[..., Any], **tensors: Tensor) -> GraphModule:
    """The graph of a function, in which the ``tensors`` given by name are parameters."""
    graph_module = symbolic_trace(function)
    for name, tensor in tensors.items():
        graph_module.register_parameter(name, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
        (given,) = (node for node in graph_module.graph.find_nodes(op="placeholder") if node.target == name)
        with graph_module.graph.inserting_before(given):
            stored = graph_module.graph.create_node("get_attr", name)
        given.replace_all_uses_with(stored)
        graph_module.graph.erase_node(given)
    graph_module.recompile()
    return graph_module


def called(module: nn.Module, inputs: int = 1) -> GraphModule:
    """A graph with one node, which calls ``module``."""
    graph = torch.fx.Graph()
    graph.output(graph.call_module("inner", tuple(graph.placeholder(f"x{i}") for i in range(inputs))))
    root = nn.Module()
    root.inner = module
    return GraphModule(root, graph)


def quantize_layers(graph_module: GraphModule, bits: Callable[[int, Node], tuple[int, int] | None]) -> GraphModule:
    """Quantize layers in place; ``bits(index, node)`` gives (weight, activation) bits or ``None``."""
    graph = graph_module.graph
    for index, node in enumerate(list(layers_of(graph_module))):
        widths = bits(index, node)
        if widths is None:
            continue
        clip = f"clip_{index}"
        set_tensor(graph_module, clip, torch.ones((), device="meta"), parameter=True)
        with graph.inserting_before(node):
            weight = graph.call_function(ops.quantize_weight, (node.args[1], widths[0]))
            quantized = (node.args[0], graph.get_attr(clip), widths[1], False)
            activation = graph.call_function(ops.quantize_activation, quantized)
        node.args = (activation, weight, *node.args[2:])
    graph_module.recompile()
    return graph_module


def linear_report(*names):
    """A report of equal linear layers of 4 inputs and 4 outputs, with these node names and module paths."""
    report = count(graph_of(lambda x, w: F.linear(x, w, None), w=torch.zeros(4, 4)), (torch.zeros(1, 4),))
    (row,) = report.rows
    return replace(report, rows=tuple(replace(row, node=node, module=module) for node, module in names))
