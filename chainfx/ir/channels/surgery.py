"""Surgery: parameters are sliced, and the numbers of channels that are written in the graph are corrected."""

import math
import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from chainfx.errors import GraphError, InputError
from chainfx.ir.channels.analyse import Axis, ChannelAnalysis, SizeLiteral
from chainfx.ir.graph import call_operator, modules_by_path, tensors_of

__all__ = ["prune"]

Removed = NDArray[np.bool_]


def prune(
    graph_module: GraphModule, analysis: ChannelAnalysis, keep: Mapping[str, Tensor | Sequence[int] | NDArray[np.int64]]
) -> None:
    """Keep only the given units of each named group, in place; groups that are not named stay whole.

    ``keep`` maps a group name to the indices of the units to keep (any order, at least one; the kept channels stay in
    their order). Parameters are replaced by smaller ones (``requires_grad`` stays), buffers too, sizes in the arguments
    of nodes and in modules are corrected, and ``node.meta["val"]`` is dropped. Tensors are never changed in place.

    Raises :class:`InputError` for an unknown group or a wrong index, :class:`GraphError` if the graph has changed since
    the analysis.
    """
    removed = _removed(analysis, keep)
    nodes = {node.name: node for node in graph_module.graph.nodes}
    modules = modules_by_path(graph_module)
    tensors = tensors_of(modules)
    _check_unchanged(analysis, nodes, tensors)
    with torch.no_grad():
        for path, tensor in _sliced(analysis, removed, tensors):
            prefix, _, name = path.rpartition(".")
            module = modules[prefix]
            held: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
            held[name] = tensor  # not by setattr, which looks through the whole module
    numbers = _Numbers(analysis, removed, nodes)
    changed = [_correct(modules, nodes[each.node], each, numbers) for each in analysis.literals]
    for node in nodes.values():
        for fact in ("val", "tensor_meta"):
            if fact in node.meta:
                del node.meta[fact]
    if any(changed):
        graph_module.recompile()


def _removed(analysis: ChannelAnalysis, keep: Mapping[str, Any]) -> Removed:
    """Which units are removed, shape (1 + number of units,), with the units of all groups numbered through from 1."""
    known = {group.name for group in analysis.groups}
    for name in keep:
        if name not in known:
            analysis.group(name)
    masks: list[Removed] = [np.zeros(1, dtype=bool)]
    for group in analysis.groups:
        mask = np.full(group.size, group.name in keep)
        if group.name in keep:
            indices = np.asarray(keep[group.name], dtype=np.int64).reshape(-1)
            if not len(indices) or indices.view(np.uint64).max() >= group.size:  # -1 is the largest of all
                raise InputError(
                    f"keep[{group.name!r}] is {indices.tolist()}, but the group has {group.size} units; "
                    f"name at least one unit, all between 0 and {group.size - 1}."
                )
            mask[indices] = False
        masks.append(mask)
    return np.concatenate(masks)


def _check_unchanged(analysis: ChannelAnalysis, nodes: Mapping[str, Node], tensors: Mapping[str, Tensor]) -> None:
    for (path, dim), units in analysis.slots.items():
        shape = tensors[path].shape if path in tensors else ()
        if len(shape) <= dim or shape[dim] != len(units):
            raise GraphError(
                f"the graph changed since the analysis: parameter {path!r} has shape {tuple(shape)}, "
                f"but dimension {dim} had {len(units)} channels; analyse the channels again."
            )
    for literal in analysis.literals:
        if literal.node not in nodes:
            raise GraphError(f"the graph changed since the analysis: node {literal.node!r} is gone; analyse again.")


def _sliced(analysis: ChannelAnalysis, removed: Removed, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The new tensors, by path, of those that lose something; these are taken out of ``tensors``.

    They come one by one, so that the memory of a large tensor is free for the next small one. Along the first dimension
    whole rows are copied, so it is cut first.
    """
    shared: dict[int, list[str]] = defaultdict(list)  # paths by tensor, if any has several
    if len({id(tensor) for tensor in tensors.values()}) < len(tensors):
        for path, tensor in tensors.items():
            shared[id(tensor)].append(path)
    for path, cuts in _cuts(analysis, removed).items():
        old = new = tensors[path]
        for dim, index in sorted(cuts.items()):
            new = new.index_select(dim, index if new.is_cpu else index.to(new.device))
        if path in analysis.indices:
            places = np.cumsum(~removed[analysis.indices[path]]) - 1
            new = torch.from_numpy(places).to(new)[new.long()]
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, old.requires_grad)
        for each in shared.get(id(old), (path,)):
            del tensors[each]
            yield each, new


def _cuts(analysis: ChannelAnalysis, removed: Removed) -> dict[str, dict[int, Tensor]]:
    """The positions to keep, by path and dimension, of every tensor that loses something.

    A tensor of positions is there, too, if some of the channels that it refers to go: the others get new numbers.
    """
    stays = ~removed
    kept: dict[int, Tensor | None] = {}  # of a line of units; None if it stays whole
    cuts: dict[str, dict[int, Tensor]] = {path: {} for path, units in analysis.indices.items() if removed[units].any()}
    for (path, dim), units in analysis.slots.items():
        if id(units) not in kept:
            index = np.flatnonzero(stays[units])
            kept[id(units)] = torch.from_numpy(index) if len(index) < len(units) else None
        if (positions := kept[id(units)]) is not None:
            cuts.setdefault(path, {})[dim] = positions
    return cuts


class _Numbers:
    """The numbers that nodes compute from sizes, once units are removed."""

    def __init__(self, analysis: ChannelAnalysis, removed: Removed, nodes: Mapping[str, Node]) -> None:
        self.removed = removed
        self._kept: dict[int, tuple[int, ...]] = {}
        self._before = analysis.values
        self._values = dict(analysis.values)
        for name, node in nodes.items():
            if name in analysis.readers:
                shape = analysis.readers[name].kept(removed)
                self._values[name] = self._call(node, torch.empty(shape, device="meta"))
            elif name in analysis.values and any(n.name in analysis.values for n in node.all_input_nodes):
                self._values[name] = self._call(node, None)

    def _call(self, node: Node, tensor: Tensor | None) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), lambda each: self._values.get(each.name, tensor))
        calls = node.op in ("call_function", "call_method")
        return call_operator(node, args, kwargs) if calls else self._values[node.name]

    def count(self, axis: Axis, dim: int) -> int:
        """How many positions of a tensor are left along ``dim``."""
        if id(axis) not in self._kept:  # what the analysis holds lives as long as this
            self._kept[id(axis)] = axis.kept(self.removed)
        return self._kept[id(axis)][dim]

    def of(self, node: Node) -> Any:
        """The number that a node computes now; ``None`` for a tensor."""
        return self._values.get(node.name)

    def original(self, node: Node) -> Any:
        """The number that it computed before."""
        return self._before.get(node.name)


def _correct(modules: Mapping[str, nn.Module], node: Node, literal: SizeLiteral, numbers: _Numbers) -> bool:
    """Correct the numbers of one literal; returns whether the graph has changed. Computed ones that are right stay."""
    before = [axis.shape[dim] for axis, dim in literal.counts]
    counts = [numbers.count(axis, dim) for axis, dim in literal.counts]
    if literal.kind in _COMPUTED:
        return _COMPUTED[literal.kind](node, literal, counts, numbers)
    if counts == before:
        return False
    if literal.kind == "attribute":
        _set_attribute(modules[str(node.target)], literal.where, counts[0])
    elif literal.kind == "split":
        node.op, node.target = "call_function", torch.split
        node.args, node.kwargs = (node.args[0], counts, literal.where[0]), {}
    elif literal.kind == "scale":
        node.update_kwarg("scale", 1 / math.sqrt(before[0]))
    else:
        _write(node, literal, slice(*counts))
    return literal.kind != "attribute"


def _set_attribute(module: nn.Module, where: Sequence[int | str], count: int) -> None:
    name, *index = where
    if index:
        old = getattr(module, str(name))
        setattr(module, str(name), tuple(count if i == index[0] else size for i, size in enumerate(old)))
    else:
        setattr(module, str(name), count)


def _correct_size(node: Node, literal: SizeLiteral, counts: Sequence[int], numbers: _Numbers) -> bool:
    entry = _entry(node, literal)
    found = numbers.of(entry) if isinstance(entry, Node) else entry
    if found == counts[0]:
        return False
    return _write(node, literal, _sized(node, entry, found, counts[0]))


def _correct_shape(node: Node, literal: SizeLiteral, counts: Sequence[int], numbers: _Numbers) -> bool:
    entry = _entry(node, literal)
    found = numbers.of(entry)
    if tuple(found) == tuple(counts):
        return False
    with node.graph.inserting_before(node):
        items = [node.graph.call_function(operator.getitem, (entry, index)) for index in range(len(counts))]
    return _write(node, literal, [_sized(node, *each) for each in zip(items, found, counts, strict=True)])


def _correct_shape_of(node: Node, literal: SizeLiteral, counts: Sequence[int], numbers: _Numbers) -> bool:
    """Correct ``x.view_as(y)``, where x and y do not lose the same: the sizes of y are written out and corrected."""
    wanted, found = counts[: len(counts) // 2], counts[len(counts) // 2 :]
    if wanted == found:
        return False
    tensor, other = node.args
    with node.graph.inserting_before(node):
        items = [node.graph.call_method("size", (other, index)) for index in range(len(wanted))]
    sizes = [_sized(node, *each) for each in zip(items, found, wanted, strict=True)]
    node.op, node.target = "call_method", "reshape"
    node.args = (tensor, *sizes)
    return True


def _correct_number(node: Node, literal: SizeLiteral, counts: Sequence[int], numbers: _Numbers) -> bool:
    entry = _entry(node, literal)
    if numbers.of(entry) == numbers.original(entry):
        return False
    return _write(node, literal, numbers.original(entry))


_COMPUTED = {
    "size": _correct_size,
    "shape": _correct_shape,
    "shape of": _correct_shape_of,
    "number": _correct_number,
}


def _sized(node: Node, entry: Node | int, found: int, wanted: int) -> Node | int:
    """A size for ``entry``, which gives ``found`` and should give ``wanted``.

    A computed one is multiplied by ``wanted / found``, so that it still follows another batch or resolution.
    """
    if found == wanted:
        return entry
    if not isinstance(entry, Node) or found == 0:
        return wanted
    common = math.gcd(found, wanted)
    with node.graph.inserting_before(node):
        times = node.graph.call_function(operator.mul, (entry, wanted // common))
        return times if found == common else node.graph.call_function(operator.floordiv, (times, found // common))


def _entry(node: Node, literal: SizeLiteral) -> Any:
    """What stands at the place of a literal among the arguments of its node."""
    key, *rest = literal.where
    whole: Any = node.kwargs[key] if isinstance(key, str) else node.args[key]
    return whole[rest[0]] if rest else whole


def _write(node: Node, literal: SizeLiteral, new: Any) -> bool:
    """Put ``new`` at the place of a literal; always returns true, since the graph has changed."""
    key, *rest = literal.where
    if rest:
        old: Any = node.kwargs[key] if isinstance(key, str) else node.args[key]
        new = tuple(new if index == rest[0] else item for index, item in enumerate(old))
    if isinstance(key, str):
        node.update_kwarg(key, new)
    else:
        node.update_arg(key, new)
    return True
