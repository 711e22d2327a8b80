"""The result of each node of a graph, found without data and without arithmetic: the shape and dtype of a tensor.

The nodes run on torch's meta device, whose tensors have a shape and a dtype but no elements. Such a call still takes
the time that torch needs to dispatch it. So rules in this file give the results of the most frequent calls without
torch, and what was computed for a call once is used again for equal calls, as in the equal blocks of a network.
"""

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from types import BuiltinFunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from chainfx.errors import InputError
from chainfx.ir.graph.bounds import check_asked, check_made
from chainfx.ir.graph.depthwise import DEPTHWISE
from chainfx.ir.graph.edit import modules_by_path
from chainfx.ir.graph.operators import Trait, call_operator, names_with, operator_of

__all__ = ["MetaEvaluator", "evaluate_graph", "needs_data", "without_data"]

_KEEPS_SHAPE = names_with(Trait.KEEPS_SHAPE)  # torch takes up to 10 ms to find that out
_KEEPS_LAYOUT = names_with(Trait.KEEPS_LAYOUT)
_MOVEMENT = names_with(Trait.MOVEMENT)
_RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)
_new = torch.empty  # as it is outside of a trace


class MetaEvaluator:
    """Evaluates single nodes of a graph without data.

    ``modules`` has the modules that the graph may call or read tensors of, by dotted path; neither they nor their
    tensors are changed.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._by_path = modules
        self._tensors: dict[int, Tensor] = {}
        self._modules: dict[str, nn.Module] = {}
        self._kinds: dict[Any, str] = {}
        self._known: dict[Any, Any] = {}

    def tensor(self, tensor: Tensor) -> Tensor:
        """A tensor without data of the same shape and dtype; always the same one for the same ``tensor``."""
        if id(tensor) not in self._tensors:
            self._tensors[id(tensor)] = without_data(tensor)
        return self._tensors[id(tensor)]

    def value(self, node: Node, value_of: Callable[[Node], Any]) -> Any:
        """The result of ``node``: a tensor without data, or whatever else it returns, such as a size.

        ``value_of`` gives the result of each node that ``node`` reads. Raises what the operation raises.
        """
        if node.op == "get_attr":
            prefix, _, name = str(node.target).rpartition(".")
            value = getattr(self._by_path[prefix], name)
            return self.tensor(value) if isinstance(value, Tensor) else value
        name = operator_of(node, self._by_path.__getitem__).name
        if name in _KEEPS_SHAPE and node.args and isinstance(node.args[0], Node):
            given = value_of(node.args[0])
            if isinstance(given, Tensor) and given.is_floating_point():
                alike = name in _KEEPS_LAYOUT or given.is_contiguous()
                return _alias(given) if alike else _empty(given.shape, given)
        if node.op == "call_module":
            module = self._by_path[str(node.target)]
            rule = _MODULE_RULES.get(type(module))
            if rule and (ruled := rule(module, value_of(node.all_input_nodes[0]))) is not None:
                return ruled
        if rule := _RULES.get(node.target):
            args, kwargs = map_arg((node.args, node.kwargs), value_of)
            if (ruled := rule(*args, **kwargs)) is not None:
                return _alias(ruled)
        if node.op == "call_method" and str(node.target).endswith("_") and name in _MOVEMENT:
            return self._run(node, value_of)  # what changes the shape in place has to be done to that very tensor
        kinds = map_arg((node.args, node.kwargs), lambda source: self._kind(value_of(source)))
        key = (node.op, node.target, repr(kinds))  # of 1, 1.0 and True only the texts differ
        if key not in self._known:
            self._known[key] = self._run(node, value_of)
            check_made(node.target, self._known[key])
        return _alias(self._known[key])

    def _kind(self, value: Any) -> Any:
        """A value with, in place of its tensors, texts that say which of them are alike."""
        if isinstance(value, Tensor):
            facts = (value.shape, value.stride(), value.dtype)
            return self._kinds.setdefault(facts, f"\0{len(self._kinds)}")
        return [self._kind(item) for item in value] if isinstance(value, tuple | list) else value

    def _run(self, node: Node, value_of: Callable[[Node], Any]) -> Any:
        args, kwargs = map(_on_meta, map_arg((node.args, node.kwargs), value_of))
        check_asked(node.target, args)
        if node.op == "call_method":
            return self._method(node, args, kwargs)
        if node.op == "call_module":
            module = self._module(str(node.target))
            with torch.no_grad(), torch.device("meta"):
                return _over_time(module, *args, **kwargs) if type(module) in _RECURRENT else module(*args, **kwargs)
        if isinstance(node.target, BuiltinFunctionType) and any(isinstance(value, Tensor) for value in args):
            # on the device of its arguments, so without the time of a context
            result = call_operator(node, args, kwargs)
            if getattr(result, "is_meta", True):
                return result
        with torch.no_grad(), torch.device("meta"):
            return call_operator(node, args, kwargs)

    def _method(self, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            return call_operator(node, args, kwargs)
        except RuntimeError:
            if node.target != "view":
                raise
            # attention of torch 2.9 has other strides without data than the kernels that run
            return args[0].reshape(*args[1:], **kwargs)

    def _module(self, path: str) -> nn.Module:
        if path not in self._modules:
            module = self._by_path[path]
            tensors = (*module.parameters(), *module.buffers())
            memo: dict[int, Any] = {id(tensor): self.tensor(tensor) for tensor in tensors}
            plain = not tensors and not module._modules and type(module).__module__.startswith("torch.nn.modules.")
            self._modules[path] = module if plain else copy.deepcopy(module, memo)
        return self._modules[path]


def without_data(tensor: Tensor) -> Tensor:
    """A tensor without data (on torch's meta device) of the same shape, strides and dtype."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _alias(value: Any) -> Any:
    """A tensor of its own for every node: one may be changed in place."""
    return value.detach() if isinstance(value, Tensor) else value


def _element_wise(first: Any = None, second: Any = None, **options: Any) -> Any:
    """The sum of two floating point operands, laid out as that of them which no axis is added to or repeated of."""
    if options or not isinstance(first, Tensor) or not first.is_floating_point():
        return None
    if isinstance(second, int | float):
        return first if _is_dense(first) else None
    if not isinstance(second, Tensor) or second.dtype != first.dtype:
        return None
    if _repeats_to(second, first) and _is_dense(first):
        return first
    whole = _repeats_to(first, second) and _is_dense(second)
    return second if whole and first.is_contiguous() and (second.is_contiguous() or _is_vector(first)) else None


def _element_wise_in_place(first: Any = None, second: Any = None, **options: Any) -> Any:
    """As :func:`_element_wise`, where the result is the first operand, which cannot grow."""
    result = _element_wise(first, second, **options)
    return result if result is first else None


def _repeats_to(tensor: Tensor, whole: Tensor) -> bool:
    """Whether repeating a tensor along its axes of length 1, and along new ones, gives the shape of another."""
    sizes = zip(reversed(tensor.shape), reversed(whole.shape), strict=False)
    return tensor.dim() <= whole.dim() and all(size in (1, wanted) for size, wanted in sizes)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie in memory without gaps, channels last if not as the axes come."""
    return tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def _is_vector(tensor: Tensor) -> bool:
    """Whether at most one axis is longer than 1, so that nothing can be said about their order."""
    return tensor.numel() == max(tensor.shape, default=1)


def _over_time(module: nn.Module, sequence: Any, *state: Any, **options: Any) -> Any:
    """What a recurrent layer gives, from the first step alone: without data torch walks through every step for long."""
    axis = 1 if getattr(module, "batch_first", False) and getattr(sequence, "ndim", 0) == 3 else 0
    if not isinstance(sequence, Tensor) or 0 in sequence.shape:
        return module(sequence, *state, **options)  # packed sequences, and what torch refuses
    step, last = module(sequence.narrow(axis, 0, 1), *state, **options)
    shape = list(step.movedim(axis, 0).shape)  # steps come first in memory
    return _new((sequence.shape[axis], *shape[1:]), dtype=step.dtype, device="meta").movedim(0, axis), last


def _item(values: Any, index: Any) -> Any:
    return None if isinstance(values, Tensor) else values[index]


def _convolved_by(module: Any, tensor: Any) -> Tensor | None:
    sizes = (module.stride, module.padding, module.dilation, module.groups)
    return None if isinstance(module.padding, str) else _convolved(tensor, module.weight, None, *sizes)


def _pooled_by(module: Any, tensor: Any) -> Tensor | None:
    return _pooled(tensor, module.output_size)


def _pooled(tensor: Any = None, output_size: Any = None) -> Tensor | None:
    """Adaptive pooling of images."""
    if not isinstance(tensor, Tensor) or tensor.dim() != 4 or not _is_dense(tensor) or 0 in tensor.shape:
        return None
    if tensor.shape[1] == 1 or tensor.shape[2:].numel() == 1:  # channels are first as well as last
        return None
    given = (output_size,) * 2 if isinstance(output_size, int) else output_size
    sizes = [size if wanted is None else wanted for size, wanted in zip(tensor.shape[2:], given, strict=True)]
    return _image((*tensor.shape[:2], *sizes), tensor)


def _linear(tensor: Any = None, weight: Any = None, *_: Any, **__: Any) -> Tensor | None:
    fits = tensor is not None and weight is not None and weight.dim() == 2 and tensor.shape[-1:] == weight.shape[1:]
    if fits and tensor.dtype != weight.dtype:  # which torch's meta tensors let pass
        raise InputError(
            f"a linear layer with a weight of {weight.dtype} is given {tensor.dtype}, which torch does not multiply; "
            f"give inputs of the dtype that the network was made for."
        )
    return _empty((*tensor.shape[:-1], weight.shape[0]), tensor) if fits else None


def _convolved(tensor: Any = None, weight: Any = None, *rest: Any, **others: Any) -> Tensor | None:
    """The output of a convolution in normal form; ``None`` of what torch may refuse, or lay out in its own way."""
    if len(rest) != 5 or others or tensor.dtype != weight.dtype:
        return None
    if not _is_dense(tensor) or not weight.is_contiguous():
        return None
    (batch, channels, *sizes), (outputs, inputs, *kernel) = tensor.shape, weight.shape
    _, strides, padding, dilation, groups = rest
    if channels != inputs * groups or len(sizes) != len(kernel):
        return None
    shape = [
        (size + 2 * pad - step * (width - 1) - 1) // stride + 1
        for size, pad, step, width, stride in zip(sizes, padding, dilation, kernel, strides, strict=True)
    ]
    return _image((batch, outputs, *shape), tensor) if min(shape) > 0 else None


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


def _resized(
    tensor: Any = None,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor | None:
    """Images of another size, by the way of resizing that torch does not write out, point by point, without data."""
    if mode not in ("bilinear", "bicubic") or antialias or not isinstance(tensor, Tensor) or tensor.dim() != 4:
        return None
    if 0 in tensor.shape or not tensor.is_contiguous():
        return None
    return F.interpolate(tensor, size, scale_factor, recompute_scale_factor=recompute_scale_factor)


def _image(shape: Sequence[int], like: Tensor) -> Tensor:
    """A tensor with channels first or last in memory, as those of another one lie."""
    layout = torch.contiguous_format if like.is_contiguous() else torch.channels_last
    return _new(shape, dtype=like.dtype, device="meta", memory_format=layout)


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    return _new(shape, dtype=like.dtype, device="meta")


# the calls that networks consist of, by rules instead of a dispatch; a rule that gives ``None`` does not apply
_RULES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((operator.add, operator.sub, operator.mul, operator.truediv), _element_wise),
    **dict.fromkeys((torch.add, torch.sub, torch.mul, torch.div), _element_wise),
    **dict.fromkeys((operator.iadd, operator.imul), _element_wise_in_place),
    **dict.fromkeys(DEPTHWISE.keys(), _convolved),
    **dict.fromkeys(DEPTHWISE.values(), lambda tensor, weight, *rest: _convolved(tensor, weight, *rest, len(weight))),
    F.linear: _linear,
    torch.cat: _joined,
    operator.getitem: _item,
    F.adaptive_avg_pool2d: _pooled,
    F.interpolate: _resized,
    getattr: getattr,
}
_MODULE_RULES: dict[type, Callable[[Any, Any], Tensor | None]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolved_by),
    nn.Linear: lambda module, tensor: _linear(tensor, module.weight),
    nn.AdaptiveAvgPool2d: _pooled_by,
}


def _on_meta(value: Any) -> Any:
    """Arguments with every device replaced by meta."""
    if isinstance(value, dict):
        return {key: "meta" if key == "device" else _on_meta(item) for key, item in value.items()}
    if isinstance(value, torch.device):
        return torch.device("meta")
    return tuple(_on_meta(item) for item in value) if type(value) is tuple else value


def needs_data(error: BaseException) -> bool:
    """Whether torch raised this error because an operation needs the elements of a tensor that has none."""
    return isinstance(error, RuntimeError) and "meta tensor" in str(error).lower()


def evaluate_graph(
    graph_module: GraphModule, examples: Sequence[Tensor], modules: Mapping[str, nn.Module] | None = None
) -> dict[Node, Any]:
    """The result of every node of a graph for inputs of these shapes, found without data.

    ``examples`` has one tensor for each input, of which only the shape and the dtype count. ``modules`` may be given to
    save time: the modules of the graph by dotted path. Raises what the operations raise, for instance ``RuntimeError``
    for inputs of a wrong shape.
    """
    evaluator = MetaEvaluator(modules or modules_by_path(graph_module))
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
