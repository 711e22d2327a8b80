"""The symbolic tracer of the train form: what becomes a node, what it is called, and where it came from."""

import contextlib
import functools
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.fx import _symbolic_trace as fx
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.proxy import Scope
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrizations import _WeightNorm
from torch.overrides import is_tensor_method_or_property

from chainfx.ir.capture.attention import attend
from chainfx.ir.capture.dropped_paths import dropping
from chainfx.ir.capture.guards import Bounds
from chainfx.ir.capture.hooks import alone, hooked, recorded, replaced, seen_here, watched_by, watcher_here
from chainfx.ir.capture.normal_form import layer_name, new_node, normal_arguments, same_padding
from chainfx.ir.capture.opened import NORMALIZATIONS, is_counter, is_whole, normalized_by, unchecked
from chainfx.ir.capture.outputs import OutputForm, taken_apart
from chainfx.ir.capture.signature import arguments
from chainfx.ir.graph import (
    AUGMENTED,
    DEPTHWISE,
    LAYERS,
    ByMode,
    assign_,
    fresh_path,
    modules_by_path,
    origin,
    tensors_of,
)

__all__ = ["Trace", "TrainFormProxy", "TrainFormTracer"]

_LITERALS = frozenset({bool, int, float, str, type(None), type(...), torch.dtype, torch.device})
# most of what a module holds: told apart from tensors at a glance
_PLAIN = _LITERALS | {dict, OrderedDict, list, tuple, set}
_OPENED = (_ConvNd, nn.Linear, _WeightNorm)
_FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "zeros", "rand", "randn", "randint", "randperm")


@dataclass
class Trace:
    """A traced graph with what merging the two modes needs.

    ``scopes``: the path of the module that made each node, also of those erased since. ``steps``: per module path, in
    order, the nodes that it made itself and the paths of the modules that it entered. ``constants``: tensors that
    belong to no module, by name. ``opened``: the paths of normalizations of which only the torch layer that they extend
    is called. ``output``: how to put what the graph returns into the classes that the model returns. ``bounds``: of
    sizes that are free but for what the code branches on.
    """

    graph: Graph
    scopes: dict[Node, str] = field(default_factory=dict)
    steps: dict[str, list[Node | str]] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    opened: set[str] = field(default_factory=set)
    output: OutputForm | None = None
    bounds: Bounds = field(default_factory=Bounds)


class TrainFormProxy(Proxy):
    """A proxy that can be stored into, ``x[index] = value``, and changed in place, ``x += value``."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", assign_, (self, index, value), {})


def _in_place(function: Callable[..., Any]) -> Callable[[TrainFormProxy, Any], Any]:
    def method(self: TrainFormProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for augmented in AUGMENTED:
    setattr(TrainFormProxy, f"__{augmented.__name__}__", _in_place(augmented))


class TrainFormTracer(Tracer):
    """Traces a module into the train form; ``leaves`` are the paths of modules to keep whole.

    ``keeps_layers`` says whether an opened normalization becomes a call of torch's layer; else it stays a function.

    The last of the ``inputs``, those ``by_name``, are handed to ``forward`` by their names.
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
        super().__init__()
        self.recorded_modules = recorded_modules
        self.inputs = inputs
        self.by_name: tuple[str, ...] = ()
        self.leaves = leaves
        self.failed_at: str | None = None
        self.names: dict[int, str] = {}
        self.keeps_layers = True
        self._modules: dict[str, nn.Module] = {}
        self._tensors: dict[str, Tensor] = {}
        self._read: dict[str, Proxy] = {}
        self.result = Trace(Graph())
        self._stack: dict[str, tuple[str, type]] = {}

    def run(self, model: nn.Module, modules: dict[str, nn.Module]) -> Trace:
        """The trace of ``model`` in its current mode; whatever its code raises on proxies passes through.

        ``modules`` are those of the model by path.
        """
        self._modules = modules
        self.result.graph = self.trace(model)
        return self.result

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> Graph:
        """As torch.fx, seen by no other thread; unpickling a graph comes here too, so its layers keep their names."""
        modules = self._modules = self._modules or modules_by_path(root)
        self._begin(root)
        with alone(), hooked(modules), seen_here(self._functions()), replaced(self._globals(modules)), _said_to_torch():
            function, args = self.create_args_for_root(self._forward_of(root), True, concrete_args)
            returns = inspect.get_annotations(inspect.unwrap(function)).get("return")
            with watched_by(self):
                plain, self.result.output = taken_apart(function(*args), type(root).__name__)
                returns = returns if self.result.output is None else None
                self.create_node("output", "output", (self.create_arg(plain),), {}, type_expr=returns)
        self.submodule_paths = None
        return self.graph

    def _begin(self, root: nn.Module) -> None:
        """Set what the methods of torch's tracer read."""
        modules = self._modules
        _LazyGraphModule.force_recompile(root)  # type: ignore[arg-type]  # any module will do
        self.root, self.graph = root, Graph(tracer_cls=type(self))
        self.submodule_paths = {module: path for path, module in reversed(modules.items())}
        self.tensor_attrs = {
            value: f"{path}.{name}".lstrip(".")
            for path, module in modules.items()
            if not _PLAIN.issuperset(map(type, vars(module).values()))
            for name, value in vars(module).items()
            if isinstance(value, fx._constant_attribute_types)
        }
        self._tensors = tensors_of(modules)
        self.names = {id(tensor): path for path, tensor in reversed(self._tensors.items())}

    def _functions(self) -> dict[tuple[ModuleType, str], Any]:
        """What this thread finds in place of functions of Python modules while it traces."""
        with torch.device("cpu"):
            # torch remembers lists of its functions: not ours, then
            is_tensor_method_or_property(torch.empty(0, device="cpu").add)
        factories = {(torch, name): self._factory(vars(torch)[name]) for name in _FACTORIES}
        return factories | {
            (module, name): call for module in self.recorded_modules for name, call in _recorded_of(module).items()
        }

    def _factory(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A ``torch.zeros`` or the like, random ones above all, that is a node instead of a constant of one trace."""

        @functools.wraps(original)
        def factory(*args: Any, **kwargs: Any) -> Any:
            if watcher_here() is not self:
                return original(*args, **kwargs)
            return self.create_proxy("call_function", original, args, kwargs)

        return factory

    def _globals(self, modules: Mapping[str, nn.Module]) -> dict[tuple[int, str], dict[str, Any]]:
        """Where functions stand that are to be recorded: those wrapped for FX, and ``from math import sqrt``."""
        functions = {id(vars(module)[name]) for module in self.recorded_modules for name in _recorded_of(module)}
        forwards = (getattr(module.forward, "__globals__", {}) for module in modules.values())
        files = {id(names): names for names in forwards}
        return fx._wrapped_fns_to_patch | {
            (index, name): names
            for index, names in files.items()
            for name, value in names.items()
            if id(value) in functions and not name.startswith("_")
        }

    def proxy(self, node: Node) -> Proxy:
        """The proxy of a node."""
        return TrainFormProxy(node, self)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """One placeholder for each example input; what ``forward`` takes beyond them keeps its default."""
        if self.inputs is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        inputs = [self.create_proxy("placeholder", name, (), {}) for name in self.inputs]
        if not self.by_name:
            return root_fn, [self.root, *inputs]
        args, kwargs = arguments(inputs, self.by_name)
        return functools.update_wrapper(functools.partial(root_fn, **kwargs), root_fn), [self.root, *args]

    def _forward_of(self, root: nn.Module) -> Callable[..., Any]:
        """What calling the model runs: the ``forward`` of its class; with hooks, or one of its own, all of that."""
        plain = not root._forward_hooks and not root._forward_pre_hooks and "forward" not in vars(root)
        return type(root).forward if plain or self.inputs is None else nn.Module._call_impl

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays one node."""
        if module_qualified_name in self.leaves or is_whole(m) or isinstance(m, ByMode):
            return True
        opened = isinstance(m, _OPENED) or not type(m).__module__.startswith("torch.nn")
        return not opened and next(m.children(), None) is None

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Enter or record a module, and remember the innermost one that raises."""
        if type(m) is nn.Identity or (type(m) is nn.Sequential and not len(m)):
            return args[0]
        if (drop := dropping(m)) is not None and len(args) == 1:
            return self.create_proxy("call_function", drop.func, args, drop.keywords)
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
            with unchecked(m):
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

    def read(self, value: Any) -> Any:
        """A parameter or buffer of the model as one ``get_attr`` node; anything else as it is."""
        if id(value) not in self.names:
            return value
        name = self.names[id(value)]
        if is_counter(name, self.scope.module_path, self.scope.module_type):
            return None  # the torch layer that the graph calls counts for itself
        if name not in self._read:
            self._read[name] = self.create_proxy("get_attr", name, (), {})
        return self._read[name]

    def create_arg(self, a: Any) -> Any:
        """As torch.fx, but a tensor that belongs to no module becomes a constant of the trace, not of the model.

        What arguments mostly are is told apart here, before torch asks for everything that it knows: that saves a sixth
        of the time of a capture.
        """
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
        if target is torch.addmm and not kwargs and self._dims(args[0]) == 1 and self._dims(args[2]) == 2:
            return F.linear(args[1], args[2].t(), args[0])
        if target in NORMALIZATIONS and self.keeps_layers:
            path = self.scope.module_path
            normalized = normalized_by(self._modules.get(path), path, target, args, kwargs)
            if normalized is not None:
                self.result.opened.add(path)
                kind, target, args, kwargs = "call_module", path, (normalized,), {}
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
        node = new_node(self.graph, kind, target, args, kwargs, name, type_expr)
        if self._stack:
            node.meta["nn_module_stack"] = self._stack
        self.result.scopes[node] = self.scope.module_path
        if kind != "get_attr":
            self.result.steps.setdefault(self.scope.module_path, []).append(node)
        return node

    def _dims(self, value: Any) -> int | None:
        """How many dimensions a parameter or buffer has; ``None`` for anything else."""
        tensor = self._tensor_at(value.node) if isinstance(value, Proxy) and value.node.op == "get_attr" else None
        return None if tensor is None else tensor.dim()

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
        sides = same_padding(tuple(tensor.shape[2:]), arguments["dilation"])
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


@functools.cache
def _recorded_of(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """The public functions of a Python module by name, recorded where they are given a proxy."""
    functions = {name: value for name, value in vars(module).items() if callable(value) and not name.startswith("_")}
    return {name: recorded(function) for name, function in functions.items()}


def _said_to_torch() -> contextlib.AbstractContextManager[None]:
    """Tell what ``torch.compile`` made that this thread traces; older versions of torch can only tell all threads."""
    says = getattr(fx, "_is_fx_tracing_context", None)
    return says(True) if says is not None else contextlib.nullcontext()


def _expansion(attention: nn.Module) -> Callable[..., Any]:
    bound = inspect.signature(attend)

    def expand(*args: Any, **kwargs: Any) -> Any:
        call = bound.bind(attention, *args, **kwargs)
        return attend(*call.args, **call.kwargs)

    return expand
