"""Symbolic tracing that knows the sizes of tensors, for models whose Python code branches on shapes.

Each node is evaluated as soon as it is recorded, on tensors without data: once with the batch of the example inputs and
once with a batch twice as large. A number that is the same both times, such as the width of an image, is handed to the
model's code as a plain number, and code like ``if x.shape[2] > 7:`` runs as usual. A number that differs depends on the
batch; it stays a node of the graph, so that the graph works for every batch. A branch that depends on the batch, or on
the data themselves, cannot be followed; it raises ``torch.fx.proxy.TraceError``.

Sizes beyond the batch can be kept free in the same way: the nodes are evaluated once more, with other sizes in those
dimensions. Then what is computed from a number that differs stays a node as well, though it may come out the same.
Where the code branches on such a node, the sizes for which it would take the same way are the bounds of the graph
(:mod:`chainfx.ir.capture.guards`).

A graph that is only read, for instance to be counted, needs no free batch. Then each node is evaluated once, and every
size is a number.
"""

import itertools
import math
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node, Proxy
from torch.fx.proxy import TraceError

from chainfx.ir.capture.guards import Guard, Place, SizeError, bounds_of, is_simple, line_here
from chainfx.ir.capture.hooks import watched_by
from chainfx.ir.capture.tracer import Trace, TrainFormProxy, TrainFormTracer
from chainfx.ir.graph import MetaEvaluator, needs_data, without_data

__all__ = ["BATCH", "DATA", "Sizes", "SizesTracer", "sizes_to_free"]

DATA = "a value that only the data give"
BATCH = "a value that changes with the batch size"

_Values = tuple[Any, ...]
Sizes = dict[Place, int]
"""Another size by the place that has it."""
_PLAIN = (bool, int, float, str, torch.Size)
_READ_SIZES = ("dim", "numel", "size")
_WHOLE = frozenset({nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear})


class _ValueProxy(TrainFormProxy):
    """A proxy that answers Python's questions from the values of its node."""

    tracer: "SizesTracer"

    @property
    def values(self) -> _Values:
        return self.tracer.values[self.node]

    def __getattr__(self, k: str) -> Any:
        found = tuple(getattr(value, k) for value in self.values)
        if _is_plain(found):
            return found[0]
        if callable(found[0]):
            return partial(self._called, k, found)
        return self.tracer.create_proxy("call_function", getattr, (self, k), {})

    def _called(self, name: str, methods: tuple[Any, ...], *args: Any, **kwargs: Any) -> Any:
        """The result of a method; one that only reads sizes, as ``x.shape`` does, is asked without recording a call."""
        if name in _READ_SIZES and not any(isinstance(each, Proxy) for each in (*args, *kwargs.values())):
            sizes = tuple(method(*args, **kwargs) for method in methods)
            if _is_plain(sizes):
                return sizes[0]
        return self.tracer.create_proxy("call_method", name, (self, *args), kwargs)

    def __bool__(self) -> bool:
        return bool(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def __index__(self) -> int:
        return int(self._number())

    def __len__(self) -> int:
        return int(_known(tuple(len(value) for value in self.values)))

    def __iter__(self) -> Iterator[Any]:
        item = self.tracer.item
        return (item(self, index) for index in range(len(self)))

    def _number(self) -> Any:
        return self.tracer.number(self.node) if self.tracer.free else _known(self.values)


def _known(values: _Values) -> Any:
    """The one value of all; raises ``TraceError`` where there is none."""
    if isinstance(values[0], Tensor):
        raise TraceError(DATA)
    if any(value != values[0] for value in values[1:]):
        raise TraceError(BATCH)
    return values[0]


def _is_plain(values: _Values) -> bool:
    """Whether this is one number, truth value, text or shape that traced code can be handed."""
    return isinstance(values[0], _PLAIN) and all(value == values[0] for value in values[1:])


class SizesTracer(TrainFormTracer):
    """A :class:`~chainfx.ir.capture.tracer.TrainFormTracer` that knows every size except that of the batch.

    ``inputs`` are the names of the arguments of ``forward``, ``examples`` one tensor for each, and ``leaves`` the paths
    of modules that stay one call. ``free`` are other sizes, in dimensions whose size is not to be known either; see
    :func:`sizes_to_free`. With ``to_read`` the graph is only to be read: the batch size is known as well, plain
    convolution and linear modules stay one call, and ``node.meta["val"]`` holds what each node gives, without data.
    """

    def __init__(
        self,
        inputs: tuple[str, ...],
        examples: Sequence[Tensor],
        leaves: Collection[str] = (),
        *,
        free: Sizes | None = None,
        to_read: bool = False,
    ) -> None:
        # where every size is a number, mathematics is done on numbers
        super().__init__(inputs, leaves, () if to_read else (math,))
        self.values: dict[Node, _Values] = {}
        self.to_read, self.keeps_layers = to_read, not to_read
        self.free = free or {}
        batches = [(without_data(example),) for example in examples] if to_read else _variants(examples, self.free)
        self._given, self._guards = tuple(examples), list[Guard]()
        self._examples = dict(zip(inputs, batches, strict=True))
        self._count = len(batches[0])

    def run(self, model: nn.Module, modules: dict[str, nn.Module]) -> Trace:
        """Trace a model, as the base class does."""
        self._evaluator = MetaEvaluator(modules)
        trace = super().run(model, modules)
        guards = [guard for guard in self._guards if guard.node in self.values]  # what was given up asks for nothing
        if guards and not model.training:
            evaluate = partial(self._evaluated, guards[-1].node)
            trace.bounds = bounds_of(guards, self._given, self.free, evaluate)
        return trace

    def number(self, node: Node) -> Any:
        """The value of a number for the example inputs, which the code is about to branch on.

        Raises ``TraceError`` where it is another one for other batches or sizes, or cannot be told for all of them.
        """
        values, line = self.values[node], line_here()
        if isinstance(values[0], Tensor):
            raise TraceError(DATA)
        if not _is_plain(values) or not is_simple(node, self._is_number):
            raise SizeError(line)
        self._guards.append(Guard(node, values[0], line))
        return values[0]

    def proxy(self, node: Node) -> Proxy:
        """Make the proxy of a node, one that knows what its node gives."""
        return _ValueProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Say whether a module stays one call: as the base class, and of a graph to be read also a plain layer."""
        whole = self.to_read and type(m) in _WHOLE and not m._forward_hooks and not m._forward_pre_hooks
        return (whole and "forward" not in vars(m)) or super().is_leaf_module(m, module_qualified_name)

    def item(self, proxy: Proxy, index: int) -> Any:
        """Give the item ``index`` of a traced tuple or tensor: a plain number if it is known, else a proxy."""
        return self.create_proxy("call_function", operator.getitem, (proxy, index), {})

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """Record a call and return its proxy, or, if the result is a known number, truth value or text, that result.

        A function that its author wrapped for FX, because its code asks for sizes, is entered and its operations are
        recorded, if that works; else it stays one call.
        """
        if kind == "call_function" and isinstance(target, FunctionType) and _may_be_entered(target, args, kwargs):
            last = next(iter(reversed(self.graph.nodes)), None)
            try:
                return target(*args, **kwargs)
            except Exception:  # whatever its code does with proxies: then it stays the one call it was wrapped to be
                for node in itertools.takewhile(lambda each: each is not last, list(reversed(self.graph.nodes))):
                    if node.op != "get_attr":  # others may read it again
                        self._forget(node)
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        recorded = isinstance(proxy, _ValueProxy) and kind in ("call_function", "call_method")
        return self._resolved(proxy) if recorded else proxy

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Node:
        """Record a node and evaluate it."""
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        if kind != "output":
            self.values[node] = self._evaluate(node)
            if self.to_read:
                node.meta["val"] = self.values[node][0]
        return node

    def _resolved(self, proxy: Any) -> Any:
        values = self.values[proxy.node]
        if _is_plain(values) and not (self.free and self._from_varying(proxy.node)):
            self._forget(proxy.node)
            return values[0]
        if isinstance(values[0], torch.Size):
            parts = tuple(proxy)
            if not proxy.node.users:
                self._forget(proxy.node)
            return parts
        return proxy

    def _from_varying(self, node: Node) -> bool:
        """Whether a node computes with a number that varies; only such numbers are nodes."""
        return any(map(self._is_number, node.all_input_nodes))

    def _is_number(self, node: Node) -> bool:
        return not isinstance(self.values[node][0], Tensor | tuple | list)

    def _evaluated(self, last: Node, inputs: Sequence[Tensor]) -> Mapping[Node, Any]:
        """What the nodes up to the ``last`` give for inputs of other sizes."""
        values: dict[Node, Any] = {}
        waiting = iter(inputs)
        with watched_by(None):
            for node in self.graph.nodes:
                if node.op == "placeholder":
                    values[node] = next(waiting)
                elif node.op == "get_attr" and str(node.target) in self.result.constants:
                    values[node] = self.values[node][0]
                else:
                    values[node] = self._evaluator.value(node, values.__getitem__)
                if node is last:
                    break
        return values

    def _forget(self, node: Node) -> None:
        steps = self.result.steps[self.result.scopes[node]]
        steps.remove(node)
        del self.values[node]
        self.graph.erase_node(node)

    def _evaluate(self, node: Node) -> _Values:
        if node.op == "placeholder":
            return self._examples[str(node.target)]
        if node.op == "get_attr" and str(node.target) in self.result.constants:
            constant = self._evaluator.tensor(self.result.constants[str(node.target)])
            return (constant,) * self._count
        try:
            with watched_by(None):
                values = [self._value(node, index) for index in range(self._count)]
        except (RuntimeError, NotImplementedError) as error:
            raise TraceError(DATA) if needs_data(error) else error from error
        return tuple(values)

    def _value(self, node: Node, index: int) -> Any:
        return self._evaluator.value(node, lambda source: self.values[source][index])


def _may_be_entered(function: FunctionType, args: Any, kwargs: Any) -> bool:
    """Whether a function is the user's own and not told a mode, on which what it does may depend."""
    given = [each.values[0] if isinstance(each, _ValueProxy) else each for each in (*args, *kwargs.values())]
    own = function.__module__.partition(".")[0] not in ("torch", "chainfx")
    return own and not any(isinstance(each, bool) for each in given)


def sizes_to_free(examples: Sequence[Tensor]) -> list[Sizes]:
    """Other sizes to trace with beside those of the examples, the most dimensions at once first.

    The height and width of images (four dimensions or more) are doubled; the length of sequences, the second dimension
    of two or three, or the last of three, is halved, since networks often have a longest sequence.
    """
    shapes = [tuple(x.shape) for x in examples]
    images = {(i, dim): 2 * s[dim] for i, s in enumerate(shapes) if len(s) > 3 for dim in (len(s) - 2, len(s) - 1)}
    sequences = {(i, 1): _half(s[1]) for i, s in enumerate(shapes) if len(s) in (2, 3) and s[1] > 1}
    signals = {(i, 2): _half(s[2]) for i, s in enumerate(shapes) if len(s) == 3 and s[2] > 1}
    found: list[Sizes] = []
    for each in ({**images, **sequences}, images, sequences, signals):
        if each and each not in found:
            found.append(each)
    return found


def _half(size: int) -> int:
    return (size + 1) // 2 if size > 3 else 2 * size


def _variants(examples: Sequence[Tensor], free: Sizes) -> list[_Values]:
    """The examples without data, with a batch of at least two, with twice that, and with the other sizes.

    The batch is the first axis of the first example, and of every other one of the same length there.
    """
    length = examples[0].shape[0] if examples[0].dim() else None

    def sized(example: Tensor, batch: int, others: dict[int, int]) -> Tensor:
        has_batch = example.dim() and example.shape[0] == length
        if not has_batch and not others:
            return example.detach().to("meta")
        shape = [others.get(dim, size) for dim, size in enumerate(example.shape)]
        return torch.empty((batch, *shape[1:]) if has_batch else shape, dtype=example.dtype, device="meta")

    first = max(2, length or 0)
    found: list[_Values] = []
    for index, example in enumerate(examples):
        others = {dim: size for (number, dim), size in free.items() if number == index}
        values = (sized(example, first, {}), sized(example, 2 * first, {}))
        found.append((*values, sized(example, first, others)) if free else values)
    return found
