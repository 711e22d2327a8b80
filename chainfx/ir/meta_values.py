"""What each node of a graph gives, on tensors without data: shapes and Python numbers, at the cost of a dispatch.

What is asked for twice, as in the equal blocks of a network, is computed once.
"""

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from chainfx.ir import ops
from chainfx.ir.edit import CONVOLUTIONS

__all__ = ["MetaEvaluator", "evaluate_graph", "needs_data", "without_data"]

# what gives the shape and dtype that it is given: torch takes up to 10 ms to find that out
_SAME_MODULES = frozenset(
    {
        _BatchNorm.forward,
        _InstanceNorm.forward,
        *(each.forward for each in (nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm, nn.Identity)),
        *(each.forward for each in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)),
        *(each.forward for each in (nn.ReLU, nn.Hardtanh, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid)),
        *(each.forward for each in (nn.Sigmoid, nn.Tanh)),
    }
)
_LAYERS = frozenset({nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d})
_new = torch.empty  # as it is outside of a trace
# what changes the shape of a tensor in place has to be done to that very tensor
_RESHAPING = frozenset({"resize_", "squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "swapdims_"})


class MetaEvaluator:
    """Runs single nodes of a graph over ``root`` on meta tensors; the tensors of ``root`` are not touched."""

    def __init__(self, root: nn.Module) -> None:
        self._root = dict(root.named_modules(remove_duplicate=False))
        self._tensors: dict[int, Any] = {}
        self._modules: dict[str, nn.Module] = {}
        self._kinds: dict[Any, str] = {}
        self._known: dict[Any, Any] = {}

    def tensor(self, tensor: Tensor) -> Tensor:
        """The same tensor without its data."""
        if id(tensor) not in self._tensors:
            self._tensors[id(tensor)] = without_data(tensor)
        return self._tensors[id(tensor)]  # type: ignore[no-any-return]

    def value(self, node: Node, value_of: Callable[[Node], Any]) -> Any:
        """The result of a node, whose arguments have the values that ``value_of`` gives for their nodes."""
        if node.op == "get_attr":
            prefix, _, name = str(node.target).rpartition(".")
            value = getattr(self._root[prefix], name)
            return self.tensor(value) if isinstance(value, Tensor) else value
        if node.op == "call_module":
            module = self._root[str(node.target)]
            if type(module).forward in _SAME_MODULES:
                return _alias(value_of(node.all_input_nodes[0]))
            if type(module) in _LAYERS and (layer := _layer(module, value_of(node.all_input_nodes[0]))) is not None:
                return layer
        args, kwargs = map_arg((node.args, node.kwargs), value_of)
        if (rule := _RULES.get(node.target)) and (ruled := rule(*args, **kwargs)) is not None:
            return _alias(ruled)
        if node.target in _RESHAPING:
            return self._run(node, args, kwargs)
        given = map_arg((node.args, node.kwargs), lambda source: self._kind(value_of(source)))
        key = (node.op, node.target, repr(given))  # of 1, 1.0 and True only the texts differ
        if key not in self._known:
            self._known[key] = self._run(node, args, kwargs)
        return _alias(self._known[key])

    def _kind(self, value: Any) -> Any:
        """A value with, in place of its tensors, texts that say which of them are alike."""
        if isinstance(value, Tensor):
            facts = (value.shape, value.stride(), value.dtype)
            return self._kinds.setdefault(facts, f"\0{len(self._kinds)}")
        return [self._kind(item) for item in value] if isinstance(value, tuple | list) else value

    def _run(self, node: Node, args: Any, kwargs: Any) -> Any:
        args, kwargs = _on_meta(args), _on_meta(kwargs)
        with torch.no_grad(), torch.device("meta"):
            if node.op == "call_module":
                return self._module(str(node.target))(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            function: Callable[..., Any] = node.target  # type: ignore[assignment]
            return function(*args, **kwargs)

    def _module(self, path: str) -> nn.Module:
        if path not in self._modules:
            module = self._root[path]
            tensors = (*module.parameters(), *module.buffers())
            memo: dict[int, Any] = {id(tensor): self.tensor(tensor) for tensor in tensors}
            self._modules[path] = copy.deepcopy(module, memo)
        return self._modules[path]


def without_data(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, strides and dtype on the meta device."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _alias(value: Any) -> Any:
    """A tensor of its own for every node: one may be changed in place."""
    return value.detach() if isinstance(value, Tensor) else value


def _same(tensor: Any = None, *_: Any, **__: Any) -> Any:
    """Something like the first argument."""
    return tensor


def _element_wise(first: Any = None, second: Any = None, **options: Any) -> Any:
    """Something like the first of two floating point operands, where the second one is repeated to fit it."""
    if options or not isinstance(first, Tensor) or not first.is_floating_point() or not first.is_contiguous():
        return None
    if isinstance(second, int | float):
        return first
    fits = isinstance(second, Tensor) and second.dtype == first.dtype and second.dim() <= first.dim()
    sizes = zip(reversed(second.shape), reversed(first.shape), strict=False) if fits else ()
    return first if fits and all(size in (1, wanted) for size, wanted in sizes) else None


def _item(values: Any, index: Any) -> Any:
    return None if isinstance(values, Tensor) else values[index]


def _layer(module: Any, tensor: Any) -> Tensor | None:
    if type(module) is nn.Linear:
        return _linear(tensor, module.weight)
    sizes = (module.stride, module.padding, module.dilation, module.groups)
    return None if isinstance(module.padding, str) else _convolved(tensor, module.weight, None, *sizes)


def _linear(tensor: Any = None, weight: Any = None, *_: Any, **__: Any) -> Tensor | None:
    fits = tensor is not None and weight is not None and weight.dim() == 2 and tensor.shape[-1:] == weight.shape[1:]
    return _empty((*tensor.shape[:-1], weight.shape[0]), tensor) if fits else None


def _convolved(tensor: Any = None, weight: Any = None, *rest: Any, **others: Any) -> Tensor | None:
    """The output of a convolution in normal form; ``None`` of what torch may refuse, or lay out in its own way."""
    if len(rest) != 5 or others or tensor.dtype != weight.dtype:
        return None
    if not tensor.is_contiguous() or not weight.is_contiguous():
        return None
    (batch, channels, *sizes), (outputs, inputs, *kernel) = tensor.shape, weight.shape
    _, strides, padding, dilation, groups = rest
    if channels != inputs * groups or len(sizes) != len(kernel):
        return None
    shape = [
        (size + 2 * pad - step * (width - 1) - 1) // stride + 1
        for size, pad, step, width, stride in zip(sizes, padding, dilation, kernel, strides, strict=True)
    ]
    return _empty((batch, outputs, *shape), tensor) if min(shape) > 0 else None


def _joined(tensors: Any = (), dim: int = 0, **options: Any) -> Tensor | None:
    """Contiguous tensors one after the other along ``dim``; ``None`` if they do not fit or need a new dtype."""
    first = tensors[0] if tensors else None
    if options or first is None or not -first.dim() <= dim < first.dim():
        return None
    joined, rest = list(first.shape), list(first.shape)
    rest[dim] = joined[dim] = 0
    for tensor in tensors:
        shape = list(tensor.shape)
        if len(shape) != len(rest) or tensor.dtype != first.dtype or not tensor.is_contiguous():
            return None
        joined[dim] += shape[dim]
        shape[dim] = 0
        if shape != rest:
            return None
    return _empty(joined, first)


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    return _new(shape, dtype=like.dtype, device="meta")


# the calls that networks consist of, by rules instead of a dispatch; a rule that gives ``None`` does not apply
_RULES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((F.batch_norm, F.layer_norm, F.dropout, F.gelu, F.relu, F.hardswish, F.silu), _same),
    **dict.fromkeys((ops.quantize_weight, ops.quantize_activation, ops.mask_weight, ops.exit_point), _same),
    **dict.fromkeys((operator.add, operator.sub, operator.mul, operator.truediv), _element_wise),
    **dict.fromkeys((operator.iadd, operator.imul, torch.add, torch.sub, torch.mul, torch.div), _element_wise),
    **dict.fromkeys(CONVOLUTIONS, _convolved),
    F.linear: _linear,
    torch.cat: _joined,
    torch.roll: _same,
    operator.getitem: _item,
    getattr: getattr,
}


def _on_meta(value: Any) -> Any:
    """Arguments with every device replaced by meta."""
    if isinstance(value, dict):
        return {key: "meta" if key == "device" else _on_meta(item) for key, item in value.items()}
    if isinstance(value, torch.device):
        return torch.device("meta")
    return tuple(_on_meta(item) for item in value) if type(value) is tuple else value


def needs_data(error: BaseException) -> bool:
    """Whether an error says that an operation cannot be done without data."""
    return isinstance(error, RuntimeError) and "meta tensor" in str(error).lower()


def evaluate_graph(graph_module: GraphModule, examples: Sequence[Tensor]) -> dict[Node, Any]:
    """The value of every node, on shapes alone; raises what its operations raise on inputs of the wrong shape."""
    evaluator = MetaEvaluator(graph_module)
    inputs = iter([without_data(tensor) for tensor in examples])
    values: dict[Node, Any] = {}
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(inputs, *node.args)
        elif node.op == "output":
            values[node] = map_arg(node.args[0], values.__getitem__)
        else:
            values[node] = evaluator.value(node, values.__getitem__)
    return values
