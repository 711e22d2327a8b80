"""The backend of ``torch.compile`` that compresses a network before the rest of the compiler sees it."""

import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from chainfx.deploy.lower import fold_codes, to_codes
from chainfx.errors import CaptureError, InputError, PassError
from chainfx.ir.capture import DynamoGraph
from chainfx.ir.graph import recording
from chainfx.passes import Pass, get_pass, pass_from_spec
from chainfx.scheduler import plan, run

__all__ = ["torch_backend"]

_INNER = ("inductor", "aot_eager", "eager")
_OPTIONS = ("passes", "inner")
_WHERE = 'torch.compile(model, backend="chainfx", options={"passes": ["fuse"]})'
_CLOSE = 1e-3  # of the largest answer: what float32 arithmetic in another order may differ by
_OF_NORMS = ("running_mean", "running_var", "weight", "bias")
_log = logging.getLogger(__name__)

Compiled = Callable[..., Any]


def torch_backend(
    graph_module: GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Compiled:
    """The backend that ``torch.compile(model, backend="chainfx", options={"passes": [...]})`` finds.

    Each graph that ``torch.compile`` makes of the model is compressed by the passes, and the compiler named by the
    option ``"inner"``, ``"inductor"`` unless said otherwise, ``"aot_eager"`` or ``"eager"``, compiles the result.
    ``"passes"`` are passes, their names, mappings such as ``{"low-rank": {"energy": 0.9}}``, or what their
    :meth:`~chainfx.passes.Pass.spec` gives. They run in the order that the scheduler finds and nothing is tuned. Those
    that need data are refused.

    The passes work on copies of the weights; the model is never changed. Every call looks whether a weight has changed
    since, by another tensor or in place (but for changes through ``.data``, which torch does not count), and then
    compresses anew. A graph in train mode, one whose arguments take part in a gradient, and one that has no train form
    go to the inner compiler as they are, and one warning of the logger ``chainfx.deploy.backend`` says why.

    Raises :class:`~chainfx.errors.InputError` for options that are not these, and
    :class:`~chainfx.errors.PassError` for a pass that needs data; ``torch.compile`` wraps both into an error of its
    own at the first call.
    """
    passes, inner = _checked(options, mode)
    try:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in example_inputs):
            raise CaptureError("gradients are recorded; compressed are graphs in torch.no_grad()")
        return _Compressed(graph_module, example_inputs, passes, inner)
    except CaptureError as error:
        _log.warning("chainfx leaves a graph of torch.compile as it is: %s.", str(error).removesuffix("."))
        return _compiled_by(inner, graph_module, example_inputs)


def _checked(options: Mapping[str, Any] | None, mode: str | None) -> tuple[tuple[Pass, ...], str]:
    """The passes and the inner compiler of the options."""
    given = dict(options or {})
    for key in given:
        if key not in _OPTIONS:
            raise InputError(f"backend 'chainfx' has no option {key!r}; use {' and '.join(map(repr, _OPTIONS))}.")
    passes, inner = given.get("passes"), given.get("inner", "inductor")
    if mode is not None or not isinstance(passes, list | tuple) or not passes:
        said = f"passes is {passes!r}" if mode is None else f"mode is {mode!r}"
        raise InputError(f"backend 'chainfx' takes a list of passes and no mode, but {said}; call {_WHERE}.")
    if inner not in _INNER:
        raise InputError(f"inner is {inner!r}; give one of {', '.join(map(repr, _INNER))}.")
    found = tuple(map(_pass, passes))
    for one in found:
        if one.needs:
            raise PassError(
                f"{one.info.name}: this pass needs data ({', '.join(sorted(one.needs))}), which torch.compile does not "
                f"have; call torch.compile(chainfx.compile(model, [...], example_inputs=..., calibration=[...], "
                f"trainer=...)) instead."
            )
    return found, inner


def _pass(given: Any) -> Pass:
    """A pass from itself, its name, its specification, or a mapping of its name to its options."""
    if isinstance(given, Pass):
        return given
    if isinstance(given, Mapping) and "pass" in given:
        return pass_from_spec(given)
    item = {given: None} if isinstance(given, str) else given
    if isinstance(item, Mapping) and len(item) == 1:
        name, options = next(iter(item.items()))
        if isinstance(name, str) and isinstance(options or {}, Mapping):
            return get_pass(name).from_spec(options or {})
    raise InputError(f"{given!r} is not a pass; give a pass, its name, or {{name: {{option: value}}}}.")


def _compiled_by(inner: str, graph_module: GraphModule, arguments: Sequence[Any]) -> Compiled:
    from torch._dynamo import lookup_backend  # heavy, and loaded by now

    compiled: Compiled = lookup_backend(inner)(graph_module, list(arguments))
    return compiled


class _Stamp(NamedTuple):
    """What tells whether a tensor still has the values that it had."""

    version: int
    address: int

    @classmethod
    def of(cls, tensor: Tensor) -> "_Stamp":
        return cls(0 if tensor.is_inference() else tensor._version, tensor.data_ptr())


@dataclass(frozen=True)
class _Variant:
    """What the passes made of some weights: the tensors that the compiled graph takes before the inputs."""

    sources: tuple["weakref.ref[Tensor]", ...]
    stamps: tuple[_Stamp, ...]
    numbers: tuple[float, ...]
    tensors: tuple[Tensor, ...]
    compiled: Compiled

    def fits(self, weights: Sequence[Tensor], numbers: Sequence[float]) -> bool:
        return self.is_of(weights, numbers) and all(
            _Stamp.of(weight) == stamp for weight, stamp in zip(weights, self.stamps, strict=True)
        )

    @property
    def is_alive(self) -> bool:
        """Whether all the weights still exist."""
        return all(source() is not None for source in self.sources)

    def is_of(self, weights: Sequence[Tensor], numbers: Sequence[float]) -> bool:
        same = all(source() is weight for source, weight in zip(self.sources, weights, strict=True))
        return same and self.numbers == tuple(numbers)


class _Compressed:
    """A compressed graph, called with the arguments of the graph that it was made of.

    Models of the same class share a graph of ``torch.compile``, so each set of weights has a variant of its own, and
    variants of the same structure share what was compiled.
    """

    def __init__(self, graph_module: GraphModule, arguments: Sequence[Any], passes: Sequence[Pass], inner: str) -> None:
        self.source = DynamoGraph.of(graph_module, arguments)
        self.passes, self.inner = passes, inner
        self.compiled: dict[object, Compiled] = {}
        self.lock = threading.Lock()
        _check_faithful(graph_module, self.source, arguments)
        self.variants = [self._variant(arguments, sizes=None)]

    def __call__(self, *arguments: Any) -> Any:
        variant = self._found(arguments) or self._made(arguments)
        return variant.compiled(*variant.tensors, *(arguments[index] for index in self.source.inputs))

    def _found(self, arguments: Sequence[Any]) -> _Variant | None:
        weights, numbers = self._kept(arguments)
        return next((each for each in self.variants if each.fits(weights, numbers)), None)

    def _made(self, arguments: Sequence[Any]) -> _Variant:
        """The variant of weights that none is of, or that have changed since."""
        with self.lock:
            found = self._found(arguments)
            if found is None:
                weights, numbers = self._kept(arguments)
                sizes = tuple(tuple(arguments[index].shape) for index in self.source.inputs)
                found = self._variant(arguments, sizes)
                alive = [each for each in self.variants if each.is_alive and not each.is_of(weights, numbers)]
                self.variants = [*alive, found]
            return found

    def _kept(self, arguments: Sequence[Any]) -> tuple[list[Tensor], list[float]]:
        """The weights and the numbers that the model keeps."""
        numbers = [arguments[index].item() for index in self.source.numbers]
        return [arguments[index] for index in self.source.weights], numbers

    def _variant(self, arguments: Sequence[Any], sizes: object) -> _Variant:
        """Compress the weights; ``sizes`` are those of the inputs, ``None`` where ``torch.compile`` guards them."""
        weights, numbers = self._kept(arguments)
        stamps = tuple(map(_Stamp.of, weights))
        inputs = tuple(arguments[index].detach() for index in self.source.inputs)
        with recording():
            train_form = self.source.train_form(arguments)
            *_, stage = run(train_form, plan(list(self.passes), tunes=False), example_inputs=inputs)
            graph_module, tensors = _lifted(fold_codes(to_codes(stage.graph_module, shared=True)))
        structure = graph_module.code, tuple((each.shape, each.dtype) for each in tensors)
        key = next((key for key in (structure, (structure, sizes)) if key in self.compiled), (structure, sizes))
        if key not in self.compiled:
            key = structure if sizes is None else key
            given = [*tensors, *(arguments[index] for index in self.source.inputs)]
            self.compiled[key] = _compiled_by(self.inner, graph_module, given)
        return _Variant(tuple(map(weakref.ref, weights)), stamps, tuple(numbers), tensors, self.compiled[key])


def _check_faithful(graph_module: GraphModule, source: DynamoGraph, arguments: Sequence[Any]) -> None:
    """Raise :class:`CaptureError` if the train form of a graph gives other answers than the graph."""
    given = source.concrete(arguments)
    answers = []
    for called, called_with in (
        (graph_module, given),
        (source.train_form(arguments), [given[index] for index in source.inputs]),
    ):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            answers.append([x for x in called(*called_with) if isinstance(x, Tensor)])
    for one, other in zip(*answers, strict=True):
        if not torch.allclose(one, other, rtol=_CLOSE, atol=_CLOSE * _largest(one), equal_nan=True):
            raise CaptureError("its train form gives other answers")


def _largest(answer: Tensor) -> float:
    finite = answer[answer.isfinite()] if answer.is_floating_point() else answer.new_zeros(0)
    return float(finite.abs().max()) if finite.numel() else 0.0


def _lifted(graph_module: GraphModule) -> tuple[GraphModule, tuple[Tensor, ...]]:
    """The graph as a function of its tensors, which come before its inputs, and these tensors."""
    graph, places = Graph(), dict[str, Node]()
    for path in dict.fromkeys(path for node in graph_module.graph.nodes for path in _tensors_of(graph_module, node)):
        places[path] = graph.placeholder(f"tensor{len(places)}")
    made: dict[Node, Any] = {}
    for node in graph_module.graph.nodes:
        norm = _norm_of(graph_module, node)
        if node.op == "get_attr":
            made[node] = places[str(node.target)]
        elif norm is not None:
            stored = [places.get(f"{node.target}.{name}") for name in _OF_NORMS]
            called = (made[node.args[0]], *stored, norm.running_mean is None, 0.0, norm.eps)
            made[node] = graph.call_function(F.batch_norm, called)
        else:
            made[node] = graph.node_copy(node, made.__getitem__)
            made[node].meta = {}
    tensors = tuple(attrgetter(path)(graph_module).detach() for path in places)
    return GraphModule(graph_module, graph), tensors


def _norm_of(graph_module: GraphModule, node: Node) -> _BatchNorm | None:
    found = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return found if isinstance(found, _BatchNorm) else None


def _tensors_of(graph_module: GraphModule, node: Node) -> list[str]:
    """The paths of the tensors that a node reads; raises :class:`PassError` for a module with some of its own."""
    if node.op != "call_module":
        return [str(node.target)] if node.op == "get_attr" else []
    module = graph_module.get_submodule(str(node.target))
    if isinstance(module, _BatchNorm):
        return [f"{node.target}.{name}" for name in _OF_NORMS if getattr(module, name) is not None]
    if any(True for _ in itertools.chain(module.parameters(), module.buffers())):
        raise PassError(
            f"the passes put a {type(module).__name__} with tensors of its own at {str(node.target)!r}, which backend "
            f"'chainfx' cannot compile; leave out the pass that does so."
        )
    return []
