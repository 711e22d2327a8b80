"""What the literals of a graph say about its layers and exits, as one value that can be compared.

The facts of a network: which weights are masked, how many bits weights and activations have, which weights are shared
through a codebook, which are stored coded, and where samples leave. Passes declare which of these facts they require,
establish or invalidate, by the names in :data:`FACTS`; the runner compares the facts before and after each pass and
each tuning. What was measured, such as exit rates, is no fact of the graph. Nor is a rank: the factors of a layer are
layers like others.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, get_args

from torch.fx import GraphModule, Node

from chainfx.ir.graph import edit, ops
from chainfx.ir.graph.content import content_hash
from chainfx.ir.graph.exits import exits_of
from chainfx.ir.graph.layer import Layer, Weighted, layers_of
from chainfx.ir.graph.tables import embeddings_of
from chainfx.ir.graph.torchao_tensors import torchao_weight_of

__all__ = [
    "FACTS",
    "BitWidths",
    "Codebook",
    "Coding",
    "ExitRule",
    "FactChange",
    "FactName",
    "Facts",
    "Mask",
    "facts_of",
]

FactName = Literal["bit-widths", "codebooks", "codings", "exits", "masks"]
"""The name of a kind of fact, as passes declare it."""

FACTS: frozenset[FactName] = frozenset(get_args(FactName))
"""The names of all kinds of facts."""

_FLOAT = 32
_HEADINGS: Mapping[FactName, str] = {
    "bit-widths": "bit widths of",
    "codebooks": "codebook of",
    "codings": "coding of",
    "exits": "exit",
    "masks": "mask of",
}


@dataclass(frozen=True, slots=True)
class Mask:
    """How the weight of a layer is masked: the pattern, the shape of the mask, the weights kept, and which (a hash)."""

    pattern: str
    shape: tuple[int, ...]
    kept: int
    content: str

    def __str__(self) -> str:
        return f"{self.pattern}, {self.kept} of {prod(self.shape)} weights kept (content {self.content[:8]})"


@dataclass(frozen=True, slots=True)
class BitWidths:
    """How a layer is quantized: the bits of its weight and of its input, 32 for float.

    ``scheme`` and ``axis`` are those of the weight's quantizer (``None`` for a weight in float; the deploy form has the
    axis in the shape of its scales), ``signed`` that of the input's. A weight that is a tensor of torchao has the name
    of its class as ``scheme``.
    """

    weight: int = _FLOAT
    activation: int = _FLOAT
    scheme: str | None = None
    axis: int | None = None
    signed: bool = False

    def __str__(self) -> str:
        weight = f"{self.weight} ({self.scheme}, axis {self.axis})" if self.scheme else str(self.weight)
        return f"weight {weight}, {'signed ' * self.signed}input {self.activation}"


@dataclass(frozen=True, slots=True)
class Codebook:
    """How the weight of a layer is shared: the entries of the codebook, and which weight has which (shape and a hash).

    The values of the entries are parameters, which tuning may change.
    """

    entries: int
    shape: tuple[int, ...]
    content: str

    def __str__(self) -> str:
        return f"{self.entries} entries for {prod(self.shape)} weights (content {self.content[:8]})"


@dataclass(frozen=True, slots=True)
class Coding:
    """How an artefact holds the weight of a layer: coded without loss, by one of :data:`chainfx.coding.CODERS`."""

    coder: str

    def __str__(self) -> str:
        return self.coder


@dataclass(frozen=True, slots=True)
class ExitRule:
    """When a sample leaves at an exit: its confidence by ``criterion`` is at least ``threshold``."""

    threshold: float
    criterion: str

    def __str__(self) -> str:
        return f"threshold {self.threshold} by {self.criterion}"


Fact = Mask | BitWidths | Codebook | Coding | ExitRule


@dataclass(frozen=True, slots=True)
class FactChange:
    """One fact that differs between two graphs; ``before`` or ``after`` is ``None`` where only one of them has it.

    ``where``: the node of the layer, or the name of the exit.
    """

    fact: FactName
    where: str
    before: Fact | None
    after: Fact | None

    def __str__(self) -> str:
        before, after = ("none" if value is None else value for value in (self.before, self.after))
        return f"{_HEADINGS[self.fact]} {self.where!r} from {before} to {after}"


@dataclass(frozen=True)
class Facts:
    """The facts of a graph: of each layer, by the name of its node, and of each exit, by its own name.

    ``layers``: the nodes of all convolution and linear layers in graph order, whether or not a fact is known of them,
    then those of embeddings that are calls, and linear layers whose weight is a tensor of torchao.
    """

    layers: tuple[str, ...]
    masks: Mapping[str, Mask] = field(hash=False)
    bit_widths: Mapping[str, BitWidths] = field(hash=False)
    codebooks: Mapping[str, Codebook] = field(hash=False)
    codings: Mapping[str, Coding] = field(hash=False)
    exits: Mapping[str, ExitRule] = field(hash=False)

    def of(self, name: FactName) -> Mapping[str, Fact]:
        """All facts of one name, such as ``"bit-widths"``."""
        found: Mapping[str, Fact] = getattr(self, name.replace("-", "_"))
        return found

    @property
    def names(self) -> frozenset[FactName]:
        """The names of the facts that hold somewhere in the graph."""
        return frozenset(name for name in FACTS if self.of(name))

    def difference(self, other: "Facts") -> tuple[FactChange, ...]:
        """What changes from these facts to the ``other``, sorted by the name of the fact, then in graph order."""
        changes = []
        for name in sorted(FACTS):
            before, after = self.of(name), other.of(name)
            for where in dict.fromkeys((*before, *after)):
                change = FactChange(name, where, before.get(where), after.get(where))
                if change.before != change.after:
                    changes.append(change)
        return tuple(changes)


def facts_of(graph_module: GraphModule) -> Facts:
    """The facts of a graph in train or deploy form, read from its literals and its masks and codes.

    >>> import torch
    >>> from chainfx.ir.capture import capture
    >>> class Net(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = torch.nn.Parameter(torch.ones(2, 4))
    ...     def forward(self, x):
    ...         return torch.nn.functional.linear(x, ops.quantize_weight(self.w, 4, "uniform", 0))
    >>> facts = facts_of(capture(Net(), (torch.ones(1, 4),)))
    >>> sorted(facts.names), str(facts.bit_widths["w_1"])
    (['bit-widths'], 'weight 4 (uniform, axis 0), input 32')
    """
    layers: list[Weighted] = [*layers_of(graph_module), *embeddings_of(graph_module)]
    found: dict[str, dict[str, Any]] = {"masks": {}, "bit_widths": {}, "codebooks": {}, "codings": {}}
    for layer in layers:
        for kind, fact in _of_layer(layer):
            found[kind][layer.name] = fact
    of_torchao = {node.name: weight for node in graph_module.graph.nodes if (weight := torchao_weight_of(node))}
    for name, weight in of_torchao.items():
        literals: tuple[Any, ...] = weight.args[1:]
        text, bits, reads = literals
        found["bit_widths"][name] = BitWidths(bits, reads, text.partition("(")[0])
    exits = {mark.name: ExitRule(mark.threshold, mark.criterion) for mark in exits_of(graph_module)}
    return Facts((*(layer.name for layer in layers), *of_torchao), **found, exits=exits)


def _of_layer(layer: Weighted) -> Iterator[tuple[str, Fact]]:
    graph_module = layer.graph_module
    literals: dict[Any, Any] = {node.target: node.args for node in _dialect_below(layer.weight_read)}
    if ops.mask_weight in literals:
        _, mask, pattern = literals[ops.mask_weight]
        tensor = edit.get_tensor(graph_module, str(mask.target))
        yield "masks", Mask(pattern, tuple(tensor.shape), int(tensor.count_nonzero()), content_hash(tensor))
    if ops.look_up in literals:
        codes, codebook = (edit.get_tensor(graph_module, str(each.target)) for each in literals[ops.look_up])
        yield "codebooks", Codebook(len(codebook), tuple(codes.shape), content_hash(codes))
    if layer.coded is not None:
        yield "codings", Coding(str(layer.coded.args[1]))
    widths: dict[str, Any] = {}
    if ops.quantize_weight in literals:
        widths |= dict(zip(("weight", "scheme", "axis"), literals[ops.quantize_weight][1:], strict=True))
    elif ops.dequantize_weight in literals:
        widths |= dict(zip(("weight", "scheme"), literals[ops.dequantize_weight][2:], strict=True))
    if isinstance(layer, Layer) and layer.input_quantizer is not None:
        widths |= dict(zip(("activation", "signed"), layer.input_quantizer.args[2:], strict=True))
    if widths:
        yield "bit_widths", BitWidths(**widths)


def _dialect_below(value: Any) -> Iterator[Node]:
    """The dialect ops between a layer and the tensor its weight is made of."""
    while isinstance(value, Node) and edit.is_dialect(value):
        yield value
        value = value.args[0]
