"""Graphs that ``torch.compile`` hands to its backends, in train form.

Such a graph calls functions alone, and takes the weights of the model as arguments: the user's own objects. The train
form of it holds copies of them.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from chainfx.errors import CaptureError
from chainfx.ir.capture.build import build, simplify
from chainfx.ir.capture.tracer import TrainFormTracer
from chainfx.ir.graph import Trait, changes_in_place, edit, fresh_path, names_with, operator_of

__all__ = ["DynamoGraph"]

_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
_BATCH_NORM = inspect.signature(F.batch_norm)
_BY_MODE = {F.batch_norm: _BATCH_NORM} | {vars(F)[name]: inspect.signature(vars(F)[name]) for name in _DROPOUTS}


@dataclass(frozen=True)
class DynamoGraph:
    """A graph of ``torch.compile``, and the positions of its arguments by what they are.

    ``weights``: parameters and buffers of the model, each with the path that it gets. ``numbers``: numbers that the
    model keeps, as tensors without dimensions. ``sizes``: sizes of inputs, each with the position and the dimension
    that it is the size of. ``inputs``: all other tensors, which the train form takes in this order.
    """

    graph: Graph
    weights: Mapping[int, str]
    numbers: tuple[int, ...]
    sizes: Mapping[int, tuple[int, int]]
    inputs: tuple[int, ...]
    dimensions: Mapping[Node, int]

    @classmethod
    def of(cls, graph_module: GraphModule, arguments: Sequence[Any]) -> Self:
        """The graph as a backend is given it; raises :class:`CaptureError`, a reason, if it has no train form."""
        placeholders = list(graph_module.graph.find_nodes(op="placeholder"))
        for node in graph_module.graph.nodes:
            _check(node, graph_module)
        weights, numbers, sizes, inputs = {}, [], [], []
        for index, (node, value) in enumerate(zip(placeholders, arguments, strict=True)):
            if isinstance(value, torch.SymInt | int):
                sizes.append(index)
            elif _is_weight(node, value):
                weights[index] = _path_of(node)
            elif _is_number(node, value):
                numbers.append(index)
            else:
                inputs.append(index)
        found = {index: _found(placeholders[index], [(i, placeholders[i]) for i in inputs]) for index in sizes}
        if not inputs:
            raise CaptureError("it takes no tensor but the weights")
        dimensions = {node: _dims(node.args[0]) for node in graph_module.graph.nodes if node.target is F.batch_norm}
        return cls(graph_module.graph, weights, tuple(numbers), found, tuple(inputs), dimensions)

    def concrete(self, arguments: Sequence[Any]) -> list[Any]:
        """The arguments with sizes as numbers."""
        given = list(arguments)
        for position, (index, dim) in self.sizes.items():
            given[position] = arguments[index].shape[dim]
        return given

    def train_form(self, arguments: Sequence[Any]) -> GraphModule:
        """The train form, in eval mode, with copies of the weights among the arguments."""
        return _Translator(self, arguments).result


class _Translator:
    """Copies a graph node by node into the train form."""

    def __init__(self, source: DynamoGraph, arguments: Sequence[Any]) -> None:
        self.source, self.shell = source, nn.Module().eval()
        self.norms: dict[str, nn.Module] = {}
        self.known: dict[Node, Any] = {}
        self.placeholders = list(source.graph.find_nodes(op="placeholder"))
        inputs = [self.placeholders[index] for index in source.inputs]
        self.tracer = TrainFormTracer(tuple(node.name for node in inputs))
        self.tracer.root = self.shell
        self.tracer.graph = self.tracer.result.graph = Graph(tracer_cls=TrainFormTracer)
        for node in inputs:
            self.known[node] = self.tracer.create_node("placeholder", node.name, (), {})
        self.paths: dict[Node, str] = {}
        for index, path in source.weights.items():
            self.paths[self.placeholders[index]] = self._kept(path, arguments[index])
        self.values = {self.placeholders[index]: arguments[index].item() for index in source.numbers}
        self.sizes = {self.placeholders[index]: place for index, place in source.sizes.items()}
        for node in source.graph.nodes:
            if node.op != "placeholder":
                self.known[node] = self._operation(node)
        trace = simplify(self.tracer.result, self.shell)
        self.result = build(self.shell, trace, self.norms)

    def _kept(self, path: str, value: Tensor) -> str:
        copied = value.detach().clone()
        if isinstance(value, nn.Parameter):
            copied = nn.Parameter(copied, requires_grad=value.is_floating_point())
        edit.place_tensor(self.shell, path, copied)
        return path

    def _node(self, node: Node) -> Any:
        """The copy of a node; that of a weight is made where it is first used, as tracing does."""
        if node not in self.known:
            self.known[node] = self._argument(node)
        return self.known[node]

    def _argument(self, node: Node) -> Any:
        if node in self.paths:
            return self.tracer.create_node("get_attr", self.paths[node], (), {})
        index, dim = self.sizes[node]
        return self.tracer.create_node("call_method", "size", (self._node(self.placeholders[index]), dim), {})

    def _operation(self, node: Node) -> Any:
        if node.target == "item" and node.args[0] in self.values:
            return self.values[node.args[0]]
        if node.op == "get_attr":
            return self.tracer.create_arg(getattr(node.graph.owning_module, str(node.target)).detach())
        args, kwargs = map_arg(node.args, self._node), map_arg(node.kwargs, self._node)
        if node.target is F.batch_norm:
            norm = self._norm(node, args, kwargs)
            if norm is not None:
                return norm
        return self.tracer.create_node(node.op, node.target, args, kwargs)

    def _norm(self, node: Node, args: Any, kwargs: Any) -> Node | None:
        """The call of a BatchNorm layer; ``None`` where its numbers or statistics are computed."""
        given = _BATCH_NORM.bind(*args, **kwargs)
        given.apply_defaults()
        call = given.arguments
        tensors = {name: call[name] for name in ("running_mean", "running_var", "weight", "bias")}
        stored = all(
            value is None or (isinstance(value, Node) and value.op == "get_attr") for value in tensors.values()
        )
        rank = self.source.dimensions.get(node)
        if not stored or not isinstance(call["eps"], float) or tensors["running_mean"] is None or rank not in _NORMS:
            return None
        if (tensors["weight"] is None) is not (tensors["bias"] is None):
            return None
        statistics = edit.get_tensor(self.shell, str(tensors["running_mean"].target))
        norm = _NORMS[rank](len(statistics), call["eps"], affine=tensors["weight"] is not None, device="meta")
        for name, value in tensors.items():
            if value is not None:
                edit.place_tensor(norm, name, edit.get_tensor(self.shell, str(value.target)))
        norm.num_batches_tracked = None
        path = fresh_path(self.shell, f"norm{len(self.norms)}")
        self.norms[path] = norm.eval()
        return self.tracer.create_node("call_module", path, (call["input"],), {})


def _check(node: Node, graph_module: GraphModule) -> None:
    """Raise :class:`CaptureError` for what the train form has no place for."""
    if node.op == "call_module" or (
        node.op == "get_attr" and not isinstance(getattr(graph_module, str(node.target), None), Tensor)
    ):
        raise CaptureError(f"it has a sub-graph, {node.name!r}")
    if node.op not in ("call_function", "call_method"):
        return
    if _is_training(node):
        raise CaptureError("the model is in train mode")
    if changes_in_place(node, graph_module):
        if _changed(node).op in ("placeholder", "get_attr"):
            raise CaptureError(f"{node.name!r} changes a tensor that the model or the caller keeps")
    elif not node.users:
        raise CaptureError(f"{node.name!r} is called for what it does besides")


def _is_training(node: Node) -> bool:
    """Whether a call is one of BatchNorm or dropout that does what they do in train mode."""
    signature = _BY_MODE.get(node.target) if node.op == "call_function" else None
    if signature is None:
        return False
    given = signature.bind(*node.args, **node.kwargs)
    given.apply_defaults()
    return given.arguments["training"] is not False


def _changed(node: Node) -> Node:
    """The node that made the memory that a node changes in place."""
    views = names_with(Trait.VIEW)
    current: Any = node.args[0]
    while current.op.startswith("call") and (
        operator_of(current).name in views or changes_in_place(current, nn.Module())
    ):
        current = current.args[0]
    changed: Node = current
    return changed


def _is_weight(node: Node, value: Tensor) -> bool:
    """Whether an argument is a parameter, or a buffer of a module, which torch marks."""
    return isinstance(value, nn.Parameter) or "_dynamo_static_input_type" in node.meta.get("tensor_dict", {})


def _is_number(node: Node, value: Tensor) -> bool:
    """Whether an argument is a number that a module keeps, such as the ``eps`` of a BatchNorm."""
    plain = value.dim() == 0 and value.dtype == torch.float64 and "_modules_" in str(node.target)
    return plain and all(user.target == "item" for user in node.users)


def _path_of(node: Node) -> str:
    """The path of a weight in its model, as the name of its placeholder has it.

    ``L_self_modules_conv_parameters_weight_`` is ``conv.weight``.
    """
    name = str(node.target).removesuffix("_").replace("_buffers_", "_parameters_")
    owner, _, own = name.partition("_parameters_")
    modules = owner.split("_modules_")[1:]
    return ".".join([*modules, own]) if own else name


def _found(node: Node, tensors: Sequence[tuple[int, Node]]) -> tuple[int, int]:
    """The tensor, by position, and the dimension that a size is that of; raises :class:`CaptureError` if of none."""
    wanted = str(node.meta["example_value"])
    for index, tensor in tensors:
        for dim, size in enumerate(tensor.meta["example_value"].shape):
            if isinstance(size, torch.SymInt) and str(size) == wanted:
                return index, dim
    raise CaptureError(f"it takes a number, {node.name!r}, that is no size of a tensor")


def _dims(node: Any) -> int:
    """How many dimensions the value of a node of a Dynamo graph has."""
    return int(node.meta["example_value"].dim())
