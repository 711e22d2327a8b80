"""The walk over a graph that gives every tensor its labels.

What each operator does to labels is in :mod:`chainfx.ir.channels.rules`. The walk itself follows two other things:
numbers that are computed from sizes, since a size may count channels, and parameters, whose slices belong to channels.
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from chainfx.ir.channels.labels import (
    Labels,
    all_of,
    any_of,
    blank,
    blanks,
    compact,
    fitted,
    select_first,
    spread,
    tensors_in,
    varying,
)
from chainfx.ir.channels.ledger import Ledger, SizeNote
from chainfx.ir.graph import (
    Operator,
    Trait,
    call_operator,
    get_tensor,
    is_dialect,
    names_with,
    operator_of,
    ops,
    origin,
    tensors_of,
)

__all__ = ["Flow", "Fold", "Rule"]

Fold = Literal["width", "heads"]
"""What is kept of channels that attention sees as (heads, width): the same part of each head, or whole heads."""

Rule = Callable[["Flow", Node], Any]

_READS = names_with(Trait.SIZES)
_ARITHMETIC = {
    *(getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "getitem")),
    *(int, min, max, round, float, math.floor, math.ceil, math.sqrt, math.log, tuple, list),
}
# the operators whose rules see to the numbers of channels among their arguments
_TAKES_SIZES = frozenset(
    {
        *("assign", "chunk", "expand", "getitem", "group_norm", "layer_norm", "reshape", "rms_norm", "split"),
        *("tensor_split", "unflatten", "view_as"),
    }
)


class Flow:
    """The state of one walk: labels of tensors, values of numbers, and the ledger of what was found out.

    * ``graph_module``, ``modules`` (by path) and ``tensors`` (parameters and buffers by path): what is analysed;
    * ``fold``: whether the channels of attention are removed by ``width`` (the same positions of every head) or by
      ``heads`` (whole heads);
    * ``values``: the value of every node that is no tensor, and ``taints``: the labels that such a number counts;
    * ``readers``: the nodes that read a size which counts channels, with the labels of the tensor they read;
    * ``products``: the nodes that multiply two activations, and ``attended``: the labels of what they multiply;
    * ``unfollowed``: the nodes that no rule can follow, with the reason.
    """

    def __init__(self, graph_module: GraphModule, modules: Mapping[str, nn.Module], fold: Fold) -> None:
        self.graph_module = graph_module
        self.fold = fold
        self.products: dict[Node, None] = {}
        self.attended: list[Labels] = []
        self.unfollowed: dict[Node, str] = {}
        self.ledger = Ledger()
        self.values: dict[Node, Any] = {}
        self.taints: dict[Node, tuple[Labels, ...]] = {}
        self.readers: dict[Node, Labels] = {}
        self._labels: dict[Node, Any] = {}
        self._counted: set[Node] = set()
        self.modules = modules
        self.tensors = tensors_of(modules)
        self._paths: dict[str, str] = {}
        self._first_paths: dict[int, str] = {}

    def operator(self, node: Node) -> Operator:
        """The operator that a node calls, as a function, a method or a module."""
        return operator_of(node, self.modules.__getitem__)

    def run(self, rule_of: Callable[["Flow", Node], Rule]) -> None:
        """Label every node in graph order, by the rule that ``rule_of`` gives for it."""
        for node in self.graph_module.graph.nodes:
            if node.op == "output":
                for each in node.all_input_nodes:
                    self.freeze_all(each, "it is an output of the network")
            elif not list(tensors_in(node.meta.get("val"))):
                self._evaluate(node)
            elif node.op == "placeholder":
                self._labels[node] = blank(node.meta["val"].shape)
            elif node.op != "get_attr" and (not is_dialect(node) or self.parameter(node) is None):
                self._label(node, rule_of(self, node))

    def _label(self, node: Node, rule: Rule) -> None:
        if self.taints and self.operator(node).name not in _TAKES_SIZES:
            self._keep_numbers(node)
        result = rule(self, node)
        self._labels[node] = result
        for labels in tensors_in(result):
            self.ledger.remember(labels)

    def _evaluate(self, node: Node) -> None:
        args = self.real(node.args)
        kwargs = self.real(node.kwargs)
        if node.op == "call_module":
            value = self.modules[str(node.target)](*args, **kwargs)
        elif node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.graph_module)
        elif node.op == "placeholder":
            value = node.args[0] if node.args else None
        else:
            value = call_operator(node, args, kwargs)
        self.values[node] = value
        self._taint(node)

    def _taint(self, node: Node) -> None:
        """Note which channels the number that a node gives counts, so that it can be followed to where it is used.

        A number that a test or an unknown function makes of it cannot be followed, so that its channels are frozen.
        """
        first = node.args[0] if node.args else None
        if isinstance(first, Node) and self.is_tensor(first):
            name = self.operator(node).name
            if name in _READS and self._counts(node, first, name):
                self.readers[node] = self.label(first)
                self.taints[node] = (self.label(first),)
                self._note_counted(node, name in ("size", "len") and isinstance(self.values[node], int))
        elif (
            node.target is operator.getitem
            and isinstance(first, Node)
            and first in self.readers
            and isinstance(node.args[1], int | slice)
        ):
            labels = self.readers[first]
            picked = range(labels.dim())[node.args[1]]
            if set(varying(labels)) & {*((picked,) if isinstance(picked, int) else picked)}:
                self.taints[node] = (labels,)
                self._note_counted(node, isinstance(picked, int))
        elif node.target in _ARITHMETIC:
            found = tuple(labels for each in node.all_input_nodes for labels in self.taints.get(each, ()))
            if found:
                self.taints[node] = found
                self._note_counted(node, self._counted.issuperset(node.all_input_nodes))
        else:
            self.spoil(node, "its number of channels is tested or computed with")

    def _note_counted(self, node: Node, counted: bool) -> None:
        """Remember a number that follows from numbers of channels alone, and not from the batch or the resolution."""
        if counted:
            self._counted.add(node)

    def _counts(self, node: Node, tensor: Node, name: str) -> bool:
        """Whether the sizes that a node reads from a tensor, by the operator of that name, count channels."""
        moving = varying(self.label(tensor))
        dim = node.args[1] if name == "size" and len(node.args) > 1 else None
        if name == "len":
            dim = 0
        return dim % self.label(tensor).dim() in moving if isinstance(dim, int) else bool(moving)

    def spoil(self, node: Node, why: str, number: Node | None = None) -> None:
        """Freeze the channels that are counted by ``number``, or by any number among the arguments of ``node``."""
        for each in node.all_input_nodes if number is None else (number,):
            for labels in self.taints.get(each, ()):
                self.freeze(labels, node, why)

    def _keep_numbers(self, node: Node) -> None:
        """See to numbers of channels that are factors or summands in the arithmetic of ``node``.

        ``x / x.shape[1]`` must divide by the number that it divided by before. Surgery writes this number down where it
        can; elsewhere the channels that are counted are frozen.
        """
        numbers = [each for each in node.all_input_nodes if each in self.taints]
        if not numbers:
            return
        given = [((i,), each) for i, each in enumerate(node.args)] + [((k,), each) for k, each in node.kwargs.items()]
        where: dict[Any, tuple[int | str, ...]] = {each: at for at, each in given if isinstance(each, Node)}
        for each in numbers:
            if each in self._counted and each in where and isinstance(self.values[each], int | float):
                self.literal(node, "number", where[each], ())
            else:
                self.spoil(node, "a number of channels is used in its arithmetic", each)

    def real(self, value: Any) -> Any:
        """Arguments in which every node is replaced by its value; a tensor by one without data."""
        return map_arg(value, lambda node: self.values[node] if node in self.values else node.meta["val"])

    def is_tensor(self, value: Any) -> bool:
        """Whether an argument is a node whose value is a tensor."""
        return isinstance(value, Node) and value not in self.values and isinstance(value.meta.get("val"), Tensor)

    def argument(self, node: Node, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name, with the nodes in it that are not tensors replaced by their values."""
        value = node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
        return map_arg(value, lambda each: self.values.get(each, each))

    def raw(self, node: Node, position: int, name: str) -> Any:
        """An argument by position or name as it stands in the graph; ``None`` if it is not given."""
        return node.args[position] if len(node.args) > position else node.kwargs.get(name)

    def parameter(self, value: Any) -> Node | None:
        """The ``get_attr`` node of the parameter that an argument comes from, through quantizers, masks and look-ups.

        ``None`` if it is computed in any other way, or from stored codes, which cannot be cut as the weight is.
        """
        if isinstance(value, Node) and value.op == "get_attr":
            return value
        source = value
        while isinstance(source, Node) and is_dialect(source):
            if source.target is ops.dequantize_weight:
                return None
            source = source.args[0]
        return origin(value)

    def register(self, node: Node, value: Any, dim: int, vector: Labels) -> None:
        """Note that dimension ``dim`` of the weight ``value`` that ``node`` reads has the labels ``vector``.

        Masks of the weight have them too. A weight that is computed is coupled with them; ``None`` is no weight.
        """
        source = self.parameter(value)
        if source is not None:
            self.ledger.register(self.path(source), dim, vector)
            for call in _masks_of(value):
                self.ledger.register(self.path(call.args[1]), dim, vector)
                if dim == 1 and ":" in str(call.args[2]):
                    self._keep_pattern(call, vector)
        elif self.is_tensor(value):
            reason = f"it meets a computed parameter whose size is fixed (node {node.name!r})"
            self.ledger.couple(vector, self.ledger.vector(self.label(value), dim, reason), reason)

    def _keep_pattern(self, call: Node, vector: Labels) -> None:
        """Couple the neighbours of an ``N:M`` pattern, so that N of every M are still zeros once some are gone."""
        period = int(str(call.args[2]).partition(":")[2])
        first = vector[torch.arange(len(vector), device="cpu") // period * period]
        self.ledger.couple(vector, first, f"its neighbour in a pattern of zeros must stay (node {call.name!r})")

    def source(self, node: Node, value: Any, dim: int, size: int) -> Labels:
        """The labels of the channels that ``node`` makes with dimension ``dim`` of the weight ``value``, (size,)."""
        weight = self.parameter(value)
        made = self.ledger.source(node.name, self.path(weight), dim, size)
        self.register(node, value, dim, made)
        return made

    def label(self, node: Any) -> Labels:
        """The labels of a node that gives a tensor.

        A parameter that is used as a tensor gets one atom for each element when it is asked for.
        """
        source = None if node in self._labels else self.parameter(node)
        if source is not None:
            tensor = self.tensor(self.path(source))
            shape = node.meta["val"].shape
            plain = node.meta["val"].is_floating_point() and tensor.shape == shape
            self._labels[node] = self.ledger.parameter(self.path(source), shape) if plain else blank(shape)
            for call in _masks_of(node) if plain else ():
                self.ledger.plain[self.path(call.args[1])] = self._labels[node]
        found: Labels = self._labels[node]
        return found

    def parts(self, node: Any) -> Any:
        """The labels of a node that gives several tensors, nested as it gives them; ``None`` for any other node."""
        found = self._labels.get(node)
        return None if isinstance(found, Tensor) else found

    def path(self, node: Any) -> str:
        """The path of the parameter of a ``get_attr`` node; one with several paths goes by the first that was met."""
        if node is None:
            raise ValueError("the node has no parameter")
        return self._canonical(str(node.target))

    def module_path(self, node: Node, name: str) -> str:
        """The path of tensor ``name`` of the module that a node calls, canonical as in :meth:`path`."""
        return self._canonical(f"{node.target}.{name}")

    def _canonical(self, path: str) -> str:
        if path not in self._paths:
            self._paths[path] = self._first_paths.setdefault(id(self.tensor(path)), path)
        return self._paths[path]

    def tensor(self, path: str) -> Tensor:
        """The parameter, buffer or constant at a path."""
        return self.tensors[path] if path in self.tensors else get_tensor(self.graph_module, path)

    def shape(self, node: Node) -> torch.Size:
        """The shape of a tensor node."""
        shape: torch.Size = node.meta["val"].shape
        return shape

    def freeze(self, labels: Labels, node: Node, why: str) -> None:
        """Freeze the channels of ``labels``; ``why`` says what ``node`` does to them."""
        self.ledger.freeze(labels, f"{why} (node {node.name!r})")

    def freeze_positions(self, node: Node, index: Any) -> None:
        """Freeze the channels of a tensor that ``node`` uses as positions in another one."""
        if self.is_tensor(index):
            self.freeze(self.label(index), node, "it is used as an index")

    def freeze_all(self, node: Node, reason: str) -> None:
        """Freeze every channel that a node carries or counts."""
        parameter = self.parameter(node)
        if parameter is not None and node not in self._labels:
            self.ledger.opaque.setdefault(self.path(parameter), reason)
            return
        parts = self.parts(node)
        carried = () if node in self.values else tensors_in(self.label(node) if parts is None else parts)
        for labels in (*carried, *self.taints.get(node, ())):
            self.ledger.freeze(labels, reason)

    def unknown(self, node: Node, why: str) -> Any:
        """The rule for what cannot be followed: freeze all that goes into a node; no channel comes out of it."""
        self.unfollowed.setdefault(node, why)
        for each in node.all_input_nodes:
            self.freeze_all(each, f"{why} (node {node.name!r})")
        return blanks(node.meta["val"])

    def combine(self, left: Labels, right: Labels, node: Node) -> Labels:
        """The labels of ``left + right`` or the like, with broadcasting; channels at the same place are coupled."""
        rank = max(left.dim(), right.dim())
        left, right = (each[(None,) * (rank - each.dim())] if each.dim() < rank else each for each in (left, right))
        shape = torch.Size([b if a == 1 else a for a, b in zip(left.shape, right.shape, strict=True)])
        if self.ledger.unite(left, right):
            return left.expand(shape)
        if not any_of(right):
            return self._beside(left, right, shape, node)
        if not any_of(left):
            return self._beside(right, left, shape, node)
        over_left = [d for d in varying(right) if left.size(d) == 1]
        over_right = [d for d in varying(left) if right.size(d) == 1]
        if not over_left and not over_right:
            left, right = left.expand(shape), right.expand(shape)
            self.ledger.couple(left, right, f"it meets channels that must stay (node {node.name!r})")
            smaller, other = sorted((left, right), key=lambda each: len(varying(each)))
            if all_of(smaller):
                return smaller
            moving = (*varying(left), *varying(right))
            smaller, other = compact(smaller, moving), compact(other, moving)
            return spread(torch.where(smaller != 0, smaller, other)).expand(shape)
        if over_left and (not over_right or self.ledger.is_plain(left)):
            left, right = right, left
        once = tuple(d for d in range(rank) if right.size(d) == 1)
        if torch.equal(compact(select_first(left, once)), compact(right)):
            return self.ledger.pin(left, once, f"it meets channels of its own (node {node.name!r})").expand(shape)
        self.freeze(right, node, "it is broadcast over other channels")
        return self._beside(left, blank(right.shape), shape, node)

    def meet(self, labels: Labels, value: Node, node: Node) -> Labels:
        """The labels of an element-wise operation of ``labels`` with the tensor ``value``, as by :meth:`combine`.

        A parameter that is used here for the first time takes the labels that it meets, instead of atoms of its own.
        """
        taken = fitted(labels, value.meta["val"].shape) if self.is_fresh(value) else None
        if taken is None:
            return self.combine(labels, self.label(value), node)
        self._labels[value] = self.ledger.plain[self.path(value)] = taken
        return labels

    def is_fresh(self, value: Node) -> bool:
        """Whether a node is a parameter of several elements, used as a tensor, that has no labels yet."""
        if value.op != "get_attr" or value in self._labels or self.path(value) in self.ledger.plain:
            return False
        return value.meta["val"].is_floating_point() and bool(value.meta["val"].numel() > 1)

    def _beside(self, labels: Labels, fixed: Labels, shape: torch.Size, node: Node) -> Labels:
        """The labels of an element-wise operation with a tensor without channels; what meets its elements must stay.

        Where that tensor is broadcast it has one element for all channels, and nothing must stay.
        """
        dims = tuple(d for d in varying(labels) if fixed.size(d) > 1)
        reason = f"it meets a tensor whose size is fixed (node {node.name!r})"
        return self.ledger.pin(labels, dims, reason).expand(shape)

    def literal(
        self, node: Node, kind: str, where: tuple[int | str, ...], counts: tuple[tuple[Labels, int], ...]
    ) -> None:
        """Note integers in the arguments of ``node`` that count channels."""
        self.ledger.literals.append(SizeNote(node.name, kind, where, counts))


def _masks_of(value: Any) -> Iterator[Node]:
    """The ``mask_weight`` nodes between a parameter and the argument ``value``."""
    while isinstance(value, Node) and is_dialect(value):
        if value.target is ops.mask_weight:
            yield value
        value = value.args[0]
