"""The symbolic tracer of the train form: what becomes a node, what it is called, and where it came from."""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.fx.proxy import Scope
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import is_tensor_method_or_property

from chainfx.ir.capture.attention import attend
from chainfx.ir.graph import (
    DEPTHWISE,
    DIALECT,
    LAYERS,
    ByMode,
    assign_,
    fresh_path,
    modules_by_path,
    origin,
    tensors_of,
)

__all__ = ["Trace", "TrainFormProxy", "TrainFormTracer", "layer_name", "name_of_target", "normal_arguments"]

_ARGUMENTS = {
    "linear": ("input", "weight", "bias"),
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "depthwise": ("input", "weight", "bias", "stride", "padding", "dilation"),
    "transposed": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
}
_KINDS = {"linear": (F.linear,), "conv": DEPTHWISE.keys(), "depthwise": DEPTHWISE.values()}
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0}
_LITERALS = frozenset({bool, int, float, str, type(None), type(...), torch.dtype, torch.device})
_SPECIAL_CALLABLES = (torch._C.ScriptMethod, torch._ops.HigherOrderOperator)
_LEAVES = (_NormBase, _DropoutNd, ByMode)
_LAYER_MODULES = (_ConvNd, nn.Linear)
# asking torch takes as long as recording a node
_is_method = functools.lru_cache(is_tensor_method_or_property)
name_of_target = functools.lru_cache(Graph()._target_to_str)
_FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "zeros", "rand", "randn", "randint", "randperm")


@dataclass
class Trace:
    """A traced graph with what merging the two modes needs.

    ``scopes``: the path of the module that made each node, also of those erased since. ``steps``: per module path, in
    order, the nodes that it made itself and the paths of the modules that it entered. ``constants``: tensors that
    belong to no module, by name.
    """

    graph: Graph
    scopes: dict[Node, str] = field(default_factory=dict)
    steps: dict[str, list[Node | str]] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)


def normal_arguments(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a conv or linear call by name, in the order of :mod:`~chainfx.ir.graph.edit`."""
    kind = next((kind for kind, targets in _KINDS.items() if target in targets), "transposed")
    names = _ARGUMENTS[kind]
    given = {**_DEFAULTS, **dict(zip(names, args, strict=False)), **kwargs}
    if kind != "linear":
        rank = int(target.__name__[-2])
        for name in ("stride", "padding", "dilation", "output_padding"):
            given[name] = _tuple_of(given[name], rank)
    return {name: given[name] for name in names}


def layer_name(weight: Any) -> str | None:
    """The name of a layer: the path of its weight, or of what that is computed from, without the last word."""
    while isinstance(weight, Node) and weight.op != "get_attr":
        weight = weight.args[0] if weight.args else None
    if not isinstance(weight, Node):
        return None
    return str(weight.target).removesuffix("weight").rstrip("._").replace(".", "_") or None


def _tuple_of(value: Any, rank: int) -> Any:
    if isinstance(value, list | tuple):
        return tuple(value) * rank if len(value) == 1 else tuple(value)
    return (value,) * rank if isinstance(value, int) else value


def _same_padding(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The (left, right) zeros of each axis that ``padding="same"`` stands for; the odd one goes right."""
    totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


class TrainFormProxy(Proxy):
    """A proxy that can be stored into: ``x[index] = value``."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", assign_, (self, index, value), {})

    @classmethod
    def __torch_function__(
        cls, orig_method: Any, types: Any, args: tuple[Any, ...] | None = None, kwargs: dict[str, Any] | None = None
    ) -> Any:
        """As torch.fx, without its search through nested arguments where one of them is a proxy itself."""
        flat = (item for value in args or () for item in (value if type(value) in (tuple, list) else (value,)))
        tracer = next((item.tracer for item in flat if isinstance(item, Proxy)), None)
        if tracer is None or isinstance(orig_method, _SPECIAL_CALLABLES):
            return super().__torch_function__(orig_method, types, args, kwargs)
        if _is_method(orig_method):
            return tracer.create_proxy("call_method", orig_method.__name__, args or (), kwargs or {})
        name = name_of_target(orig_method.__name__)
        return tracer.create_proxy("call_function", orig_method, args or (), kwargs or {}, name=name)


class TrainFormTracer(Tracer):
    """Traces a module into the train form; ``leaves`` are the paths of modules to keep whole.

    Calls of functions of the ``recorded_modules`` (Python's, not torch's) become nodes where they are given a proxy.

    Convolution and linear layers are traced through their own ``forward``, so that subclasses, hooks and
    parametrizations mean what they mean in eager mode; what arrives at ``F.conv*`` and ``F.linear`` is put into normal
    form.
    """

    def __init__(
        self,
        inputs: tuple[str, ...] | None = None,
        leaves: Collection[str] = (),
        recorded_modules: tuple[ModuleType, ...] = (math,),
    ) -> None:
        functions = (*DEPTHWISE.values(), *DIALECT, assign_)  # in the code of a graph that is captured again
        super().__init__(recorded_modules, functions)  # type: ignore[arg-type]  # annotated as one module
        self.inputs = inputs
        self.leaves = leaves
        self.failed_at: str | None = None
        self.evaluating = False
        self.names: dict[int, str] = {}
        self._tensors: dict[str, Tensor] = {}
        self.result = Trace(Graph())
        self._stack: dict[str, tuple[str, type]] = {}

    def run(self, model: nn.Module) -> Trace:
        """The trace of ``model`` in its current mode; whatever its code raises on proxies passes through."""
        self.result.graph = self.trace(model)
        return self.result

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> Graph:
        """As torch.fx; unpickling a graph comes here too, so that its layers get their names back."""
        self._tensors = tensors_of(modules_by_path(root))
        self.names = {id(tensor): path for path, tensor in reversed(self._tensors.items())}
        with self._recorded_factories():
            return super().trace(root, concrete_args)

    def proxy(self, node: Node) -> Proxy:
        """The proxy of a node."""
        return TrainFormProxy(node, self)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """One placeholder for each example input; what ``forward`` takes beyond them keeps its default."""
        if self.inputs is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in self.inputs)]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays one node."""
        if module_qualified_name in self.leaves or isinstance(m, _LEAVES):
            return True
        if isinstance(m, _LAYER_MODULES) or next(m.children(), None) is not None:
            return False
        return type(m).__module__.startswith("torch.nn")

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Enter or record a module, and remember the innermost one that raises."""
        if self.evaluating:
            return forward(*args, **kwargs)
        if type(m) is nn.Identity:
            return args[0]
        path = self.path_of_module(m)
        leaf = self.is_leaf_module(m, path)
        if not leaf:
            self.result.steps.setdefault(self.scope.module_path, []).append(path)
            if type(m).forward is nn.MultiheadAttention.forward:
                forward = _expansion(m)
        outer, stack = self.scope, self._stack
        self._enter(path, m)
        try:
            if leaf:
                return self.create_proxy("call_module", path, args, kwargs)
            return forward(*args, **kwargs)
        except Exception:
            self.failed_at = self.failed_at if self.failed_at is not None else path
            raise
        finally:
            self.scope, self._stack = outer, stack

    def _enter(self, path: str, module: nn.Module) -> None:
        """Note where the next nodes come from; they share the one dictionary that says so."""
        calls = self.num_calls.get(path, 0)
        self.num_calls[path] = calls + 1
        self.scope = Scope(path, type(module))
        self._stack = {**self._stack, f"{path}@{calls}" if calls else path: (path, type(module))}

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Proxy]) -> Any:
        """A parameter or buffer of the model as one ``get_attr`` node; anything else as it is."""
        if self.evaluating or not isinstance(attr_val, Tensor) or id(attr_val) not in self.names:
            return attr_val
        name = self.names[id(attr_val)]
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def create_arg(self, a: Any) -> Any:
        """As torch.fx, but a tensor that belongs to no module becomes a constant of the trace, not of the model."""
        kind = type(a)
        if kind in _LITERALS:
            return a
        if isinstance(a, Proxy):
            return a.node
        if kind is tuple or kind is list:
            return kind([self.create_arg(item) for item in a])
        if kind is dict and all(type(key) is str for key in a):
            return {key: self.create_arg(item) for key, item in a.items()}
        if isinstance(a, Tensor) and id(a) in self.names:
            return self.create_node("get_attr", self.names[id(a)], (), {})
        if not isinstance(a, Tensor) or isinstance(a, nn.Parameter):
            return super().create_arg(a)
        constants = self.result.constants
        name = next((name for name, tensor in constants.items() if tensor is a), None)
        if name is None:
            name = fresh_path(self.root, f"constant{len(constants)}")
            constants[name] = a
        return self.create_node("get_attr", name, (), {})

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """Record a call; a function wrapped for FX that is given a weight is traced through: it hides layers."""
        if kind == "call_function" and isinstance(target, FunctionType) and self._is_given_weight(target, args, kwargs):
            return target(*args, **kwargs)
        return super().create_proxy(kind, target, args, kwargs, *rest, **more)

    def _is_given_weight(self, function: FunctionType, args: Any, kwargs: Any) -> bool:
        if function.__module__.startswith(("torch.", "chainfx.")) or function.__module__ == "torch":
            return False
        nodes = [value.node for value in (*args, *kwargs.values()) if isinstance(value, Proxy)]
        return any(node.op == "get_attr" and str(node.target).endswith("weight") for node in nodes)

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
    ) -> Node:
        """Record a node, conv and linear calls in normal form and named after their weight."""
        if kind == "call_function" and target in LAYERS:
            arguments = self._padded(target, normal_arguments(target, args, kwargs))
            if self._is_depthwise(target, arguments):
                target = DEPTHWISE[target]
                del arguments["groups"]
            args, kwargs = tuple(arguments.values()), {}
            name = layer_name(args[1]) or name
        if kind in ("get_attr", "call_module") and target.islower() and not target.startswith("__"):
            name = target.replace(".", "_")  # as torch would, without its regular expressions
        elif name is None and kind == "call_method":
            name = name_of_target(target)
        node = self.graph.create_node(kind, target, (), {}, name, type_expr)
        # given above, arguments would be searched for symbolic sizes; set as usual, the node would be listed anew
        if args:
            object.__setattr__(node, "args", args)
        if kwargs:
            object.__setattr__(node, "kwargs", kwargs)
        if self._stack:
            node.meta["nn_module_stack"] = self._stack
        self.result.scopes[node] = self.scope.module_path
        if kind != "get_attr":
            self.result.steps.setdefault(self.scope.module_path, []).append(node)
        return node

    def _is_depthwise(self, target: Any, arguments: dict[str, Any]) -> bool:
        """Whether a convolution has one filter for each channel, more than one of both."""
        groups = arguments.get("groups", 1)
        if target not in DEPTHWISE or groups == 1:
            return False
        weight = self._tensor_at(arguments["weight"])
        return weight is not None and tuple(weight.shape[:2]) == (groups, 1)

    def _padded(self, target: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """Padding given as a word turned into numbers, with an ``F.pad`` before the call where the sides differ."""
        padding, weight = arguments.get("padding"), arguments["weight"]
        if not isinstance(padding, str):
            return arguments
        rank = int(target.__name__[-2])
        if padding == "valid":
            return {**arguments, "padding": (0,) * rank}
        tensor = self._tensor_at(weight)
        if tensor is None:
            return arguments
        sides = _same_padding(tuple(tensor.shape[2:]), arguments["dilation"])
        if any(left != right for left, right in sides):
            spread = tuple(max(0, right - left) * side for left, right in reversed(sides) for side in (0, 1))
            padded = self.create_node("call_function", F.pad, (arguments["input"], spread), {})
            arguments = {**arguments, "input": padded}
        return {**arguments, "padding": tuple(left for left, _ in sides)}

    def _tensor_at(self, weight: Any) -> Tensor | None:
        """The parameter or buffer behind a weight node, or ``None`` for one that is computed."""
        source = origin(weight)
        if source is None:
            return None
        self._tensors = self._tensors or tensors_of(modules_by_path(self.root))
        return self._tensors.get(str(source.target))

    @contextlib.contextmanager
    def _recorded_factories(self) -> Iterator[None]:
        """Make ``torch.zeros`` and the like, random ones above all, nodes instead of constants of one trace."""
        with torch.device("cpu"):
            torch.empty(
                0, device="cpu"
            )  # torch remembers its factories when it first uses a device context: not ours, then
        originals = {name: getattr(torch, name) for name in _FACTORIES}

        def recorded(original: Callable[..., Any]) -> Callable[..., Any]:
            def record(*args: Any, **kwargs: Any) -> Any:
                if self.evaluating:
                    return original(*args, **kwargs)
                return self.create_proxy("call_function", original, args, kwargs)

            return record

        try:
            for name, original in originals.items():
                setattr(torch, name, recorded(original))
            yield
        finally:
            for name, original in originals.items():
                setattr(torch, name, original)


def _expansion(attention: nn.Module) -> Callable[..., Any]:
    bound = inspect.signature(attend)

    def expand(*args: Any, **kwargs: Any) -> Any:
        call = bound.bind(attention, *args, **kwargs)
        return attend(*call.args, **call.kwargs)

    return expand
