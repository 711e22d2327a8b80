"""Layers: a convolution or linear call seen together with what it reads, and which of them a pass works on."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from chainfx.errors import GraphError, PassError
from chainfx.ir.graph import edit, ops
from chainfx.ir.graph.matrices import matrices_of
from chainfx.ir.graph.operators import Trait, names_with, operator_of

__all__ = [
    "Layer",
    "Skipped",
    "Weighted",
    "ends_of",
    "layer_at",
    "layer_path",
    "layers_of",
    "left_alone",
    "select",
    "value_of",
]

_T = TypeVar("_T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something a pass left alone, and the reason.

    ``node`` is the name of a node of the graph, or the path of a parameter or of a module; a parameter is named by the
    name of a node that reads it, by its own path, or by the path of a module that it lies in.
    """

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Weighted:
    """A call seen together with the stored weight that it reads as its second argument: a layer, or an embedding.

    This is a view: the properties look at the graph as it is now, so they stay true while a pass edits it. Two views of
    one call are equal. ``graph_module`` is the network, ``node`` the call.
    """

    graph_module: GraphModule
    node: Node

    @property
    def name(self) -> str:
        """The name of the call, by which records and ``skipped`` speak of it."""
        return self.node.name

    @property
    def path(self) -> str:
        """The path of the call as a module of the network: ``layer1.0.conv1``."""
        return layer_path(self.weight_path)

    @property
    def coded(self) -> Node | None:
        """The ``coded_weight`` node on top of the weight and its mask; ``None`` if the weight is not stored coded."""
        return _calls(edit.input_of(self.node, 1), ops.coded_weight)

    @property
    def weight(self) -> Node:
        """The ``get_attr`` node of the stored weight (the codes, where those are stored), beneath all dialect ops."""
        stored = edit.origin(self.node.args[1])
        if stored is None:
            raise GraphError(f"the weight of node {self.name!r} is computed; only a stored weight makes it a layer.")
        return stored

    @property
    def weight_path(self) -> str:
        """The path of the stored weight: ``layer1.0.conv1.weight``."""
        return str(self.weight.target)

    @property
    def tensor(self) -> Tensor:
        """The stored weight itself."""
        return edit.get_tensor(self.graph_module, self.weight_path)

    @property
    def weight_read(self) -> Node:
        """What the call reads as its weight: the mask, else the quantizer or another dialect op, else ``weight``.

        A mark above it that the artefact holds the weight coded is not looked at, and is gone once the layer reads
        another weight.
        """
        read = edit.input_of(self.node, 1)
        return edit.input_of(read) if read.target is ops.coded_weight else read

    @property
    def weight_beneath_mask(self) -> Node:
        """What the call reads as its weight, or what its mask reads."""
        return self.weight_read if self.mask is None else edit.input_of(self.mask)

    @property
    def mask(self) -> Node | None:
        """The ``mask_weight`` node on top of the weight; ``None`` if it is not masked."""
        return _calls(self.weight_read, ops.mask_weight)

    @property
    def weight_quantizer(self) -> Node | None:
        """The ``quantize_weight`` node beneath the mask; ``None`` if the weight is not fake-quantized."""
        return _calls(self.weight_beneath_mask, ops.quantize_weight)

    def read_weight(self, weight: Node) -> None:
        """Let the call read another weight through its mask, which stays on top: not every code book has a zero."""
        mask = self.mask
        if mask is None:
            self.node.update_arg(1, weight)
            return
        with self.node.graph.inserting_before(self.node):
            masked = self.node.graph.call_function(ops.mask_weight, (weight, *mask.args[1:]))
        self.node.update_arg(1, masked)

    def put_mask(self, path: str, pattern: str) -> None:
        """Put a mask on top of a weight that has none: the boolean buffer at ``path``, see :func:`ops.mask_weight`."""
        graph = self.node.graph
        with graph.inserting_before(self.node):
            arguments = (self.weight_read, graph.get_attr(path), pattern)
            self.node.update_arg(1, graph.call_function(ops.mask_weight, arguments))


@dataclass(frozen=True, slots=True)
class Layer(Weighted):
    """One convolution or linear layer of a graph in train form: the call, and what it reads.

    Of a layer that is quantized and masked the graph has these nodes, each named as the property that finds it::

        source -> input_quantizer                      -> node
        weight -> weight_quantizer -> mask (on top)    -> node
        bias                                           -> node

    >>> import torch
    >>> from torch import nn
    >>> from chainfx.ir.capture import capture
    >>> (conv,) = layers_of(capture(nn.Sequential(nn.Conv2d(4, 6, 3, groups=2)), (torch.zeros(1, 4, 8, 8),)))
    >>> conv.path, conv.weight_path, conv.groups, conv.out_axis, conv.mask
    ('0', '0.weight', 2, 0, None)
    """

    @property
    def input_quantizer(self) -> Node | None:
        """The ``quantize_activation`` node that the call reads; ``None`` if its input is in float."""
        return _calls(edit.input_of(self.node), ops.quantize_activation)

    @property
    def source(self) -> Node:
        """The activation that the layer reads, beneath its quantizer."""
        return edit.input_of(self.node if self.input_quantizer is None else self.input_quantizer)

    @property
    def bias(self) -> Node | None:
        """The ``get_attr`` node of the stored bias; ``None`` if there is none, or it is computed."""
        return edit.origin(self.node.args[2])

    @property
    def bias_read(self) -> Node | None:
        """What the call reads as its bias; ``None`` if there is none."""
        return None if self.node.args[2] is None else edit.input_of(self.node, 2)

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution, whose weight has its input channels first."""
        return self.node.target in edit.TRANSPOSED

    @property
    def in_axis(self) -> int:
        """The axis of the weight along which the input channels (of one group) lie."""
        return 0 if self.transposed else 1

    @property
    def out_axis(self) -> int:
        """The axis of the weight along which the output channels lie (of one group, if it is transposed)."""
        return 1 if self.transposed else 0

    @property
    def groups(self) -> int:
        """The number of groups of a convolution; 1 for a linear layer."""
        return edit.groups_of(self.node, self.tensor.shape)

    @property
    def options(self) -> tuple[Any, ...]:
        """What follows the bias in the call: stride, padding, ...; empty for a linear layer."""
        return self.node.args[3:]

    def read_input(self, activation: Node) -> None:
        """Let the layer read another activation, or a quantizer of one."""
        self.node.update_arg(0, activation)

    def read_bias(self, path: str) -> None:
        """Let the layer read the tensor at a path as its bias."""
        with self.node.graph.inserting_before(self.node):
            self.node.update_arg(2, self.node.graph.get_attr(path))


def _calls(node: Node, function: object) -> Node | None:
    return node if node.target is function else None


def layer_path(weight_path: str) -> str:
    """The path of the layer that a weight belongs to: ``conv1`` for ``conv1.weight``, ``w`` for a bare ``w``."""
    return weight_path.rpartition(".")[0] or weight_path


def layer_at(graph_module: GraphModule, node: Node) -> Layer | None:
    """The layer whose call a node is; ``None`` for any other node, and for a call whose weight is computed."""
    is_layer = node.op == "call_function" and node.target in edit.LAYERS and edit.origin(node.args[1]) is not None
    return Layer(graph_module, node) if is_layer else None


def layers_of(graph_module: GraphModule) -> Iterator[Layer]:
    """The convolution and linear layers whose weight is a tensor of the network, in graph order."""
    for node in graph_module.graph.nodes:
        layer = layer_at(graph_module, node)
        if layer is not None:
            yield layer


def ends_of(graph_module: GraphModule) -> tuple[frozenset[Layer], frozenset[Layer]]:
    """The first and the last layers: those with no layer before them, and those with none after (each exit has one)."""
    layers = list(layers_of(graph_module))
    calls = {layer.node for layer in layers}
    first = frozenset(layer for layer in layers if not _reaches(layer.node, calls, forward=False))
    last = frozenset(layer for layer in layers if not _reaches(layer.node, calls, forward=True))
    return first, last


def _reaches(start: Node, calls: set[Node], *, forward: bool) -> bool:
    """Whether there is one of ``calls`` after (before) a node."""
    waiting, seen = [start], {start}
    while waiting:
        node = waiting.pop()
        for other in node.users if forward else node.all_input_nodes:
            if other in calls:
                return True
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return False


def value_of(graph_module: GraphModule, node: Node) -> Tensor:
    """The value of a node that depends on nothing but tensors of the network: one of these, or a dialect op on some."""
    if node.op == "get_attr":
        return edit.get_tensor(graph_module, str(node.target)).detach()
    value: Tensor = edit.function_of(node)(*map_arg(node.args, lambda each: value_of(graph_module, each)))
    return value


def select(
    graph_module: GraphModule,
    name: str,
    *,
    include: Sequence[str] = (),
    skip: Sequence[str] = (),
    weight_names: bool = False,
) -> tuple[list[Layer], list[Skipped]]:
    """The layers that a pass works on, in graph order, and what it leaves alone, with the reason.

    ``include`` and ``skip`` are patterns (``fnmatchcase``) of layer paths, see :func:`left_alone`; with
    ``weight_names`` a pattern may also name the weight, as in ``"conv1.weight"``. Also left alone is every other place
    where a parameter of two or more dimensions is read: calls whose weight is computed by other ops than those of
    :mod:`~chainfx.ir.graph.ops`, modules with matrices inside, and a matrix that is read as a plain tensor (it is named
    by its path). ``name``: the name of the pass. Raises :class:`~chainfx.errors.PassError` for a pattern that matches
    no layer.
    """
    layers = list(layers_of(graph_module))
    names = {layer: (layer.path, layer.weight_path)[: 1 + weight_names] for layer in layers}
    known = [layer.path for layer in layers]
    reasons = left_alone(names, name, known, include=include, skip=skip)
    skipped = [Skipped(layer.name, reason) for layer, reason in reasons.items()]
    rest = [*_hidden(graph_module), *_plain(graph_module)]
    return [layer for layer in layers if layer not in reasons], skipped + rest


def left_alone(
    things: Mapping[_T, Sequence[str]],
    name: str,
    known: Sequence[str],
    *,
    include: Sequence[str] = (),
    skip: Sequence[str] = (),
    kind: str = "layer",
) -> dict[_T, str]:
    """Which things (layers, or groups of them) a pass leaves alone because of its patterns, with the reason.

    ``things``: the paths by which each may be named. One that a pattern of ``skip`` matches is left alone, and, if
    there is any pattern in ``include``, one that none of these matches. ``known``: the layers of the network, which a
    pattern may name without effect. Raises :class:`~chainfx.errors.PassError`, in the name of the pass, if a pattern
    matches nothing; it lists what is known, and ``kind`` says what that is.

    >>> groups = {"a": ["conv1"], "b": ["conv2", "conv3"], "c": ["fc"]}
    >>> left_alone(groups, "prune-channels", ["conv1", "conv2", "conv3", "fc"], include=["conv*"], skip=["*3"])
    {'b': 'a pattern of skip matches it', 'c': 'no pattern of include matches it'}
    """
    names = {*known, *(path for paths in things.values() for path in paths)}
    for option, patterns in (("skip", skip), ("include", include)):
        for pattern in patterns:
            if not any(fnmatchcase(each, pattern) for each in names):
                raise PassError(
                    f"{name}: the pattern {pattern!r} in {option} matches no {kind}; "
                    f"layers are {', '.join(dict.fromkeys(known))}."
                )
    reasons = {}
    for thing, paths in things.items():
        if _matches(paths, skip):
            reasons[thing] = "a pattern of skip matches it"
        elif include and not _matches(paths, include):
            reasons[thing] = "no pattern of include matches it"
    return reasons


def _matches(paths: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for path in paths for pattern in patterns)


def _hidden(graph_module: GraphModule) -> list[Skipped]:
    """Calls and modules with weights that are no parameters of layers."""
    found = []
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target in edit.LAYERS and edit.origin(node.args[1]) is None:
            found.append(Skipped(node.name, "its weight is computed"))
        elif node.op == "call_module":
            module = graph_module.get_submodule(str(node.target))
            if any(parameter.dim() > 1 for parameter in module.parameters()):
                found.append(Skipped(node.name, _why_module(graph_module, node)))
    return found


def _why_module(graph_module: GraphModule, call: Node) -> str:
    """Why the weights of a module stay: it does something else (an embedding), or nobody sees what (an LSTM)."""
    operator = operator_of(call, graph_module.get_submodule)
    if operator.name in names_with(Trait.ARITHMETIC) | names_with(Trait.MOVEMENT):
        return f"module {operator.spelling} is no convolution or linear layer"
    return f"the inside of module {operator.spelling} is not visible"


def _plain(graph_module: GraphModule) -> list[Skipped]:
    """Parameters of two or more dimensions that are read otherwise than as a layer's weight or inside of a module."""
    found = []
    for matrix in matrices_of(graph_module):
        if matrix.others:
            reason = f"{matrix.others[0].name!r} reads it, not as the weight of a convolution or linear layer"
            found.append(Skipped(matrix.path, reason))
    return found
