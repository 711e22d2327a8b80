"""Capture by ``torch.export``, for models that symbolic tracing cannot follow.

``torch.export`` gives a graph of ATen operators. It is translated node by node into the train form, the form of graph
that all passes work on.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.fx import Graph, GraphModule, Node, Proxy
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils import _pytree as pytree

from chainfx.errors import CaptureError
from chainfx.ir.capture.hooks import alone
from chainfx.ir.capture.outputs import taken_apart
from chainfx.ir.capture.quiet import quiet
from chainfx.ir.capture.signature import arguments, signature_of
from chainfx.ir.capture.tracer import Trace, TrainFormTracer
from chainfx.ir.graph import LAYERS, evaluating, operator_of

__all__ = ["export_to_read", "export_trace"]

_aten = torch.ops.aten

# the train form spells ATen operators, here by their own names, as networks do
_LAYERS = {function.__name__: function for function in LAYERS}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("add", "mul", "sub")},
    **{name: getattr(torch, name) for name in ("cat", "flatten", "bmm", "matmul", "sigmoid", "tanh")},
    **{name: getattr(F, name) for name in ("relu", "silu", "gelu", "hardtanh", "hardswish", "hardsigmoid")},
    **{name: getattr(F, name) for name in ("adaptive_avg_pool2d", "avg_pool2d", "scaled_dot_product_attention")},
    "div": operator.truediv,
}
_METHODS = ("view", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "expand", "contiguous", "mean", "chunk")
_OF_NORMS = ("weight", "bias", "running_mean", "running_var")
_CHECKS = ("_assert", "sym_constrain")


def export_trace(
    model: nn.Module, inputs: tuple[str, ...], examples: Sequence[Tensor], by_name: tuple[str, ...], *, strict: bool
) -> Trace:
    """Trace ``model`` in its current mode (train or eval) by ``torch.export``.

    The batch size stays free, all other sizes are fixed to those of the examples. ``inputs`` are the names of the
    arguments of ``forward``, ``examples`` one tensor for each, and ``strict`` is the option of ``torch.export``. The
    last of the ``inputs``, those ``by_name``, are handed to the model by their names.

    Calls of convolution, linear, BatchNorm and dropout become those of the train form. Other operators get the name
    that people write, such as ``torch.relu``, where there is one, and stay ATen calls where there is none. Raises what
    ``torch.export`` raises, and :class:`~chainfx.errors.CaptureError` for a graph with sub-graphs.
    """
    args, kwargs = arguments(_at_least_two(examples), by_name)
    program = export(model, args, kwargs, dynamic_shapes=_batch_dims(examples), strict=strict)
    return _Translator(model, inputs, program).result


def export_to_read(model: nn.Module, example_inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> GraphModule | None:
    """Export ``model`` in eval mode for reading only, or return ``None`` if ``torch.export`` cannot.

    The graph stays in ATen operators, with the sizes of the examples and with the branches of ``torch.cond``. It can
    be counted, but passes cannot work on it, because it is not in train form.
    """
    try:
        with alone(), quiet(), evaluating(model), torch.no_grad():
            signature, examples = signature_of(model, example_inputs)
            args, kwargs = arguments(examples, signature.by_name)
            return export(model, args, kwargs).module(check_guards=False)
    except Exception:  # whatever the model's code and torch raise: the error of capture says more
        return None


def _at_least_two(examples: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The examples with a batch of at least two, since ``torch.export`` fixes a size of one."""
    if not _is_batch(examples[0], examples) or examples[0].shape[0] > 1:
        return tuple(examples)
    return tuple(torch.cat([x, x]) if _is_batch(x, examples) else x for x in examples)


def _batch_dims(examples: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple({0: Dim.DYNAMIC} if _is_batch(x, examples) else None for x in examples)


def _is_batch(example: Tensor, examples: Sequence[Tensor]) -> bool:
    return example.dim() > 0 and examples[0].dim() > 0 and example.shape[0] == examples[0].shape[0]


class _Translator:
    """Copies an exported graph node by node into the train form."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], program: ExportedProgram) -> None:
        self.model = model
        self.tracer = TrainFormTracer(inputs)
        self.tracer.root, self.tracer.graph = model, Graph(tracer_cls=TrainFormTracer)
        self.result = self.tracer.result
        self.result.graph = self.tracer.graph
        self.source = program.module(check_guards=False)
        self.known: dict[Node, Node] = {}
        waiting = iter(inputs)
        for node in self.source.graph.find_nodes(op="placeholder"):
            self.known[node] = self.tracer.create_node("placeholder", next(waiting), (), {})
        for node in self.source.graph.nodes:
            if node.op == "output":
                self._output(node, program.call_spec.out_spec)
            elif node.op not in ("placeholder", "get_attr") and not self._is_bookkeeping(node):
                self.known[node] = self._operation(node)

    def _output(self, node: Node, structure: Any) -> None:
        flat = [self._proxy(value) for value in pytree.tree_leaves(node.args[0])]
        whole = pytree.tree_unflatten(flat, structure)
        plain, self.result.output = taken_apart(whole, type(self.model).__name__)
        self.tracer.create_node("output", "output", (self.tracer.create_arg(plain),), {})

    def _proxy(self, value: Any) -> Any:
        return Proxy(self._node(value), self.tracer) if isinstance(value, Node) else value

    def _node(self, node: Node) -> Node:
        """The copy of a node; that of a tensor is made where it is first used, as tracing does."""
        if node not in self.known:
            self.known[node] = self._attribute(node)
        return self.known[node]

    def _attribute(self, node: Node) -> Node:
        path = str(node.target)
        tensor = operator.attrgetter(path)(self.source)
        if not isinstance(tensor, Tensor):
            raise CaptureError(f"the exported graph of {type(self.model).__name__} has a sub-graph, {path}.")
        if path not in dict(self.model.named_parameters(remove_duplicate=False)) | dict(self.model.named_buffers()):
            constant: Node = self.tracer.create_arg(tensor.detach())
            return constant
        return self.tracer.create_node("get_attr", path, (), {})

    def _is_bookkeeping(self, node: Node) -> bool:
        """Assertions, and the step counter that BatchNorm modules keep themselves."""
        name = operator_of(node).spelling
        counter = node.args[0] if name == "add_" else None
        counts = isinstance(counter, Node) and str(counter.target).endswith("num_batches_tracked")
        return not node.users and (counts or name.startswith(_CHECKS))

    def _operation(self, node: Node) -> Node:
        kind, target, args, kwargs = self._plain(node, operator_of(node).spelling, node.args, node.kwargs)
        copy = self.tracer.create_node(kind, target, map_arg(args, self._node), map_arg(kwargs, self._node))
        copy.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
        return copy

    def _plain(self, node: Node, name: str, args: Any, kwargs: Any) -> tuple[str, Any, Any, Any]:
        """The train form's own spelling of an ATen call."""
        if name in _LAYERS:
            return "call_function", _LAYERS[name], args, kwargs
        if name == "batch_norm":
            return "call_module", self._batch_norm_of(node), args[:1], {}
        if name == "addmm" and not kwargs and [_stored_dims(args[index]) for index in (0, 2)] == [1, 2]:
            turned = self.tracer.create_node("call_method", "t", (self._node(args[2]),), {})
            self.known[turned] = turned
            return "call_function", F.linear, (args[1], turned, args[0]), {}
        if name == "dropout":
            path = _scope_of(node)
            if path and isinstance(self.model.get_submodule(path), _DropoutNd):
                return "call_module", path, args[:1], {}
            return "call_function", F.dropout, args, kwargs
        if name == "sym_size":
            return "call_method", "size", args, kwargs
        if name == "lift_fresh_copy":
            return "call_function", torch.clone, args, kwargs
        if name in _METHODS and not kwargs:
            return "call_method", name, args, kwargs
        if name in _FUNCTIONS and (not kwargs or name in ("gelu", "scaled_dot_product_attention")):
            return "call_function", _FUNCTIONS[name], args, kwargs
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise CaptureError(f"the exported graph of {type(self.model).__name__} has a sub-graph, {node.name}.")
        return "call_function", node.target, args, kwargs

    def _batch_norm_of(self, node: Node) -> str:
        """The path of the BatchNorm module that made a ``batch_norm`` call, found by its tensors."""
        tensors = [str(value.target) if isinstance(value, Node) else None for value in node.args[1:5]]
        paths = {path.rpartition(".")[0] for path in tensors if path} or {_scope_of(node)}
        path = paths.pop()
        module = self.model.get_submodule(path) if not paths else None
        own = [f"{path}.{name}" if getattr(module, name, None) is not None else None for name in _OF_NORMS]
        by_batch = isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
        if not isinstance(module, _BatchNorm) or tensors != own or node.args[5] is not by_batch:
            raise CaptureError(f"the batch_norm call {node.name} does not come from a torch.nn.BatchNorm module.")
        self.result.opened.add(path)
        return path


def _stored_dims(value: Any) -> int | None:
    """How many dimensions a tensor of the model has; ``None`` for anything else."""
    return value.meta["val"].dim() if isinstance(value, Node) and value.op == "get_attr" else None


def _scope_of(node: Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {"": ("", None)}).values())
    return str(stack[-1][0])
