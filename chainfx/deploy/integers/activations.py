"""Activations and quantizers among the nodes of a graph."""

from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from chainfx.deploy.integers.kernels import Activation
from chainfx.ir.graph import edit, operator_of, ops

__all__ = ["activation_of", "is_quantizer"]


def is_quantizer(node: Node) -> bool:
    """Whether a node quantizes an activation."""
    return node.op == "call_function" and node.target is ops.quantize_activation


def activation_of(graph_module: GraphModule, node: Node) -> tuple[Activation, tuple[float, ...]] | None:
    """The activation that a node applies, with its numbers, if the kernels have it."""
    name = operator_of(node, graph_module.get_submodule).name
    if name == "relu":
        return "relu", ()
    if name == "relu6":
        return "hardtanh", (0.0, 6.0)
    if name == "hardswish":
        return "hardswish", ()
    if name == "silu":
        return "swish", ()
    return ("hardtanh", _bounds(graph_module, node)) if name == "hardtanh" else None


def _bounds(graph_module: GraphModule, node: Node) -> tuple[float, float]:
    module = edit.module_of(graph_module, node, nn.Hardtanh)
    if module is not None:
        return float(module.min_val), float(module.max_val)
    given: dict[str, Any] = {**dict(zip(("min_val", "max_val"), node.args[1:3], strict=False)), **node.kwargs}
    return float(given.get("min_val", -1.0)), float(given.get("max_val", 1.0))
