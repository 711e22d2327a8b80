"""Shapes and dtypes of every node, computed without data and without arithmetic."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import Argument, Target
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from chainfx.errors import InputError
from chainfx.ir import ops

__all__ = ["propagate_shapes", "shape_of"]

_SHAPE_KEEPING = (
    nn.modules.batchnorm._NormBase,
    nn.modules.dropout._DropoutNd,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.Tanh,
)
_KEEPING_OPS = (ops.quantize_weight, ops.quantize_activation, ops.exit_point)
_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError)


def propagate_shapes(graph_module: GraphModule, example_inputs: Sequence[Tensor]) -> None:
    """Put a tensor without data (or the plain value) of every node into ``node.meta["val"]``.

    ``example_inputs`` are positional, batch first, on any device (meta included). Raises :class:`InputError` when the
    network does not accept their shapes.
    """
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    required = [node for node in placeholders if not node.args]
    if not len(required) <= len(example_inputs) <= len(placeholders):
        raise InputError(
            f"the network takes {len(required)} inputs, but example_inputs has {len(example_inputs)}; "
            f"give a tuple with one tensor for each of {', '.join(node.name for node in required)}."
        )
    with torch.no_grad():
        try:
            _MetaShapes(graph_module).run(*(_without_data(tensor) for tensor in example_inputs))
        except _FAILURES:  # a device named in the graph, or a module that needs real tensors: fake ones know both
            _propagate_fake(graph_module, example_inputs)


def shape_of(node: Node) -> tuple[int, ...]:
    """The shape of a node's tensor after :func:`propagate_shapes`; raises :class:`InputError` if there is none."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        raise InputError(f"node {node.name!r} has no known tensor shape; call propagate_shapes first.")
    return tuple(int(size) for size in value.shape)


class _MetaShapes(Interpreter):
    """Runs a graph on the meta device; what keeps its input's shape is not run at all."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        n.meta["val"] = value
        return value

    def get_attr(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:
        value = super().get_attr(target, args, kwargs)
        return _without_data(value) if isinstance(value, Tensor) else value

    def call_function(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:
        if target in _KEEPING_OPS:
            return args[0]
        return super().call_function(target, args, kwargs)

    def call_module(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(str(target))
        if isinstance(module, _SHAPE_KEEPING) and type(module).__module__.startswith("torch."):
            return args[0]
        tensors = [*module.named_parameters(), *module.named_buffers()]
        return torch.func.functional_call(module, {name: _without_data(value) for name, value in tensors}, args, kwargs)


def _without_data(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, strides and dtype on the meta device."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _propagate_fake(graph_module: GraphModule, example_inputs: Sequence[Tensor]) -> None:
    try:
        FakeTensorProp(graph_module, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*example_inputs)
    except _FAILURES as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in example_inputs)
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the network does not accept example_inputs of shape {shapes}: {reason}; "
            f"give inputs of the shape it was made for."
        ) from error
