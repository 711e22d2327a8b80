"""The shape and dtype of what each node of a graph gives, found without data and without doing the arithmetic."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils._pytree import tree_map_only

from chainfx.errors import InputError
from chainfx.ir.graph.bounds import check_asked, check_made
from chainfx.ir.graph.edit import modules_by_path
from chainfx.ir.graph.meta_values import evaluate_graph
from chainfx.ir.graph.running import unlogged

__all__ = ["GraphToRead", "propagate_shapes", "shape_of"]

_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError)


class GraphToRead(GraphModule):
    """A graph that is read and never run, such as a graph that is only counted.

    It lies over the very modules of a model, which are not copied, and ``node.meta["val"]`` of its nodes says what they
    give for inputs of one shape.
    """

    def __init__(self, graph: Graph) -> None:
        nn.Module.__init__(self)
        self._graph = graph
        self._paths: dict[str, nn.Module] = {}

    def get_submodule(self, target: str) -> nn.Module:
        """The module at a dotted path, as in torch, but found in a table that the first call makes."""
        if not self._paths:
            self._paths = modules_by_path(self)
        return self._paths[target]

    @property
    def is_complete(self) -> bool:
        """Whether ``node.meta["val"]`` is there for every node but the output."""
        return all("val" in node.meta or node.op == "output" for node in self.graph.nodes)


def propagate_shapes(
    graph_module: GraphModule, example_inputs: Sequence[Tensor], modules: Mapping[str, nn.Module] | None = None
) -> None:
    """Find what every node of a graph gives for inputs of these shapes, and put it into ``node.meta["val"]``.

    For a node that gives a tensor that is a tensor of its shape and dtype without data; for one that gives a number,
    such as a size, the number. ``example_inputs`` are positional, batch first, on any device, the meta device included.
    ``modules`` may be given to save time: the modules of the graph by dotted path. A :class:`GraphToRead` knows its
    results from capture and is left as it is.

    Raises :class:`InputError` if the network does not accept inputs of these shapes.
    """
    if isinstance(graph_module, GraphToRead) and graph_module.is_complete:
        return
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    required = [node for node in placeholders if not node.args]
    if not len(required) <= len(example_inputs) <= len(placeholders):
        raise InputError(
            f"the network takes {len(required)} inputs, but example_inputs has {len(example_inputs)}; "
            f"give a tuple with one tensor for each of {', '.join(node.name for node in required)}."
        )
    try:
        values = evaluate_graph(graph_module, example_inputs, modules)
    except _FAILURES:  # a module that needs real tensors: fake ones will do
        with torch.no_grad():
            _propagate_fake(graph_module, example_inputs)
    else:
        for node, value in values.items():
            node.meta["val"] = value


def shape_of(node: Node) -> tuple[int, ...]:
    """The shape of a node's tensor after :func:`propagate_shapes`; raises :class:`InputError` if there is none."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        raise InputError(f"node {node.name!r} has no known tensor shape; call propagate_shapes first.")
    return tuple(int(size) for size in value.shape)


def _facts(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


class _FakeShapes(FakeTensorProp):
    """Runs a graph on fake tensors, and remembers at which node it is.

    Of a module that looks at its data, such as an opaque one with a branch, a copy in eval mode runs on zeros and on
    ones instead; if the shapes of what it gives differ, they depend on the data.
    """

    at: Node

    def run_node(self, n: Node) -> Any:
        self.at = n
        value = super().run_node(n)
        check_made(n.target, value)
        return value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        check_asked(target, args)
        return super().call_function(target, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        check_asked(target, args)
        return super().call_method(target, args, kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return super().call_module(target, args, kwargs)
        except DataDependentOutputException:
            with unset_fake_temporarily():
                module = copy.deepcopy(self.fetch_attr(target)).eval()
                zeros, ones = (self._filled(module, make, args, kwargs) for make in (torch.zeros, torch.ones))
            if tree_map_only(Tensor, _facts, zeros) != tree_map_only(Tensor, _facts, ones):
                raise
            return tree_map_only(Tensor, self._mode.from_tensor, zeros)

    def _filled(self, module: nn.Module, make: Callable[..., Tensor], *given: Any) -> Any:
        def real(fake: Tensor) -> Tensor:
            return make(fake.shape, dtype=fake.dtype, device=fake.device)

        args, kwargs = tree_map_only(Tensor, real, given)
        return module(*args, **kwargs)


def _propagate_fake(graph_module: GraphModule, example_inputs: Sequence[Tensor]) -> None:
    shapes_on_fakes = _FakeShapes(graph_module, FakeTensorMode(allow_non_fake_inputs=True))
    without_data = any(parameter.is_meta for parameter in graph_module.parameters())
    try:
        with unlogged("torch._subclasses.fake_tensor"):
            shapes_on_fakes.propagate(*(tensor.to("meta") if without_data else tensor for tensor in example_inputs))
    except (DynamicOutputShapeException, DataDependentOutputException) as error:
        raise InputError(
            f"what node {shapes_on_fakes.at.name!r} gives depends on the data ({error.func}), so the shapes of the "
            "network do not follow from those of its inputs; leave this operation out of the network."
        ) from error
    except _FAILURES as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in example_inputs)
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(
            f"the network does not accept example_inputs of shape {shapes}: {reason}; "
            f"give inputs of the shape it was made for."
        ) from error
