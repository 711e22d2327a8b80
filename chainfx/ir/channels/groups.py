"""From components of atoms to dependency groups: the last step of the channel analysis.

A component of coupled atoms is one unit. Units that touch the same dimensions of the same parameters form a group, so
that one can be removed for another.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import Node
from torch.fx.node import map_arg

from chainfx.ir.channels.labels import Labels, compact, identity, spread, varying
from chainfx.ir.channels.ledger import Ledger
from chainfx.ir.channels.result import (
    Axis,
    ChannelAnalysis,
    ChannelGroup,
    FrozenChannels,
    Member,
    SizeLiteral,
    SourceLayer,
)
from chainfx.ir.channels.walk import Flow
from chainfx.ir.graph import Matrix, matrices_of, origin

__all__ = ["Grouping"]

IntArray = NDArray[np.int64]
_T = TypeVar("_T")

_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, which spreads the numbers multiplied by it
_LONE = "all its channels are one unit"
_NONE = "none of its dimensions has channels that can go"


class Grouping:
    """Puts the components that a walk over a graph has found into groups; :meth:`analysis` is the result."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.ledger: Ledger = flow.ledger
        self._same: dict[int, Labels] = {}
        self._first: dict[tuple[int, ...], Labels] = {}
        self._lines: dict[int, IntArray] = {}
        self._axes: dict[tuple[int, ...], Axis] = {}
        component = self.ledger.components()
        self.count, unit, self.bounds = self._numbered(self._kinds(component))
        self.units = unit[component]
        self._group_of = np.repeat(np.arange(-1, self.count), np.diff([0, *self.bounds]))

    def _kinds(self, component: IntArray) -> NDArray[np.uint64]:
        """The kind of every component, shape (number of components,); 0 for one that no layer makes.

        Components are of one kind if they touch the same parameter dimensions and the same slices of channels. A kind
        is a hash of the numbers of these.
        """
        kind = np.zeros(int(component.max()) + 1, dtype=np.uint64)
        sets = _once(map(self._one, (*self.ledger.slots.values(), *self.ledger.parts)))
        for number, labels in enumerate(sets, start=1):
            members = component[compact(labels).reshape(-1).numpy()]
            found = (kind[members] ^ np.uint64(number)) * _ODD
            kind[members] = found ^ (found >> np.uint64(29))
        made = np.zeros(len(kind), dtype=bool)
        for labels in _once(self._one(source.atoms) for source in self.ledger.sources):
            made[component[labels.numpy()]] = True
        made[0] = False
        return kind * made

    def _numbered(self, kind: NDArray[np.uint64]) -> tuple[int, IntArray, list[int]]:
        """The number of groups, the unit of every component, and the first unit of every group with an end after them.

        Units are numbered from 1, group by group, and groups come in the order of their first component. A kind with a
        single component is no group, since nothing of it can be removed; its component gets unit 0, which stays.
        """
        starts = np.flatnonzero(np.concatenate([[True], kind[1:] != kind[:-1]]))  # of components of one kind
        lengths = np.diff(starts, append=len(kind)).tolist()
        runs = list(zip(starts.tolist(), lengths, kind[starts].tolist(), strict=True))
        sizes: dict[int, int] = {}
        for _, length, each in runs:
            sizes[each] = sizes.get(each, 0) + length
        live = {each: size for each, size in sizes.items() if each and size > 1}
        bounds = list(accumulate(live.values(), initial=1))
        following = dict(zip(live, bounds, strict=False))
        unit = np.zeros(len(kind), dtype=np.int64)
        for start, length, each in runs:
            if each in following:
                unit[start : start + length] = np.arange(following[each], following[each] + length)
                following[each] += length
        return len(live), unit, bounds

    def analysis(self) -> ChannelAnalysis:
        """The groups, the frozen channels and what surgery needs, as one value."""
        units = {id(labels): self._line(labels) for labels in _once(self.ledger.slots.values())}
        lines = {key: units[id(labels)] for key, labels in self.ledger.slots.items()}
        for path, labels in self.ledger.plain.items():
            axis = self._axis(labels)
            if axis.dim is not None:
                lines[path, axis.dim] = axis.units
        moving = {id(line): bool(line.any()) for line in _once(lines.values())}
        slots = {key: units for key, units in lines.items() if moving[id(units)]}
        parameters = {path: each for path, each in self.flow.tensors.items() if isinstance(each, nn.Parameter)}
        self._elements = {path: each.numel() for path, each in parameters.items()}
        groups = self._groups(slots)
        return ChannelAnalysis(
            groups=groups,
            frozen=tuple(self._frozen()),
            outside=self._outside({path for path, _ in slots}),
            slots=slots,
            literals=tuple(self._literals()),
            readers={node.name: self._axis(labels) for node, labels in self.flow.readers.items()},
            indices={path: self._line(labels) for path, labels in self.ledger.indices.items()},
            values={node.name: value for node, value in self.flow.values.items()},
            fold=self.flow.fold,
            attention=frozenset(groups[index].name for index in self._attended()),
            parameters=sum({id(each): each.numel() for each in parameters.values()}.values()),
            prunable=self._sum_of({path for path, _ in slots}),
            products={node.name: self._product(node) for node in self.flow.products},
        )

    def _one(self, labels: Labels) -> Labels:
        """The one label tensor that stands for all those that are the same, or are coupled as whole runs."""
        if id(labels) not in self._same:
            eldest = self.ledger.eldest(labels)
            if eldest is labels:
                eldest = self._first.setdefault(identity(labels), labels)
            self._same[id(labels)] = eldest
        return self._same[id(labels)]

    def _line(self, labels: Labels) -> IntArray:
        """The units along a parameter dimension; labels that are the same get the very same array."""
        labels = self._one(labels)
        if id(labels) not in self._lines:
            self._lines[id(labels)] = self.units[labels.numpy()]
        return self._lines[id(labels)]

    def _attended(self) -> list[int]:
        """The numbers of the groups whose channels enter a product of two activations."""
        atoms = [compact(labels).reshape(-1) for labels in self.flow.attended]
        units = np.unique(self.units[torch.cat(atoms).numpy()]) if atoms else np.zeros(0, dtype=np.int64)
        return sorted(set(self._group_of[units[units > 0]].tolist()))

    def _product(self, node: Node) -> tuple[Axis, ...]:
        given: list[Node] = []
        map_arg((node.args, node.kwargs), given.append)
        tensors = [each for each in given if self.flow.is_tensor(each)]
        return tuple(self._axis(self.flow.label(each)) for each in (*tensors, node))

    def _axis(self, labels: Labels) -> Axis:
        labels = self._one(labels) if labels.dim() == 1 else labels
        key = identity(labels)
        if key not in self._axes:
            self._axes[key] = self._new_axis(labels)
        return self._axes[key]

    def _new_axis(self, labels: Labels) -> Axis:
        shape = tuple(labels.shape)
        if labels.dim() == 1:
            return Axis(shape, 0, self._line(labels))
        units = spread(torch.from_numpy(np.asarray(self.units[compact(labels).numpy()])))
        moving = varying(units)
        if not moving:
            return Axis(shape)
        first = tuple(slice(None) if d == moving[0] else 0 for d in range(units.dim()))
        return Axis(shape, moving[0], units[first].numpy())

    def _count(self, labels: Labels, dim: int) -> tuple[Axis, int]:
        return (self._axis(labels) if labels.numel() else Axis(tuple(labels.shape))), dim

    def _literals(self) -> Iterator[SizeLiteral]:
        for each in self.ledger.literals:
            counts = tuple(self._count(labels, dim) for labels, dim in each.counts)
            yield SizeLiteral(each.node, each.kind, each.where, counts)

    def _groups(self, slots: Mapping[tuple[str, int], IntArray]) -> tuple[ChannelGroup, ...]:
        members: list[list[Member]] = [[] for _ in range(self.count)]
        parts: dict[int, list[tuple[int, IntArray, IntArray]]] = {}
        for (path, dim), units in slots.items():
            if id(units) not in parts:
                parts[id(units)] = list(self._parts(units))
            for group, positions, inside in parts[id(units)]:
                members[group].append(Member(path, dim, positions, inside))
        made = {(s.path, s.dim): SourceLayer(s.node, s.path, s.dim) for s in self.ledger.sources}
        rank = {key: place for place, key in enumerate(made)}
        groups: list[ChannelGroup] = []
        taken: dict[str, int] = {}
        for place, found in enumerate(members):
            keys = sorted({(m.path, m.dim) for m in found} & made.keys(), key=rank.__getitem__)
            name = made[keys[0]].node
            taken[name] = taken.get(name, 0) + 1
            unique = name if taken[name] == 1 else f"{name}/{taken[name]}"
            size = self.bounds[place + 1] - self.bounds[place]
            sources = tuple(made[key] for key in keys)
            groups.append(ChannelGroup(unique, size, sources, tuple(found), self._sum_of({m.path for m in found})))
        return tuple(groups)

    def _parts(self, units: IntArray) -> Iterator[tuple[int, IntArray, IntArray]]:
        """The groups along a parameter dimension: of each its number, its positions, and its units counted from 0."""
        positions = units.nonzero()[0]
        units = units[positions]
        group = self._group_of[units]
        if (group == group[0]).all():
            yield int(group[0]), positions, units - self.bounds[group[0]]
            return
        order = group.argsort(kind="stable")
        for places in np.split(order, np.diff(group[order]).nonzero()[0] + 1):
            each = int(group[places[0]])
            yield each, positions[places], units[places] - self.bounds[each]

    def _sum_of(self, paths: set[str]) -> int:
        """How many elements the parameters among the tensors at these paths have; buffers count nothing."""
        return sum([self._elements.get(path, 0) for path in paths])

    def _frozen(self) -> Iterator[FrozenChannels]:
        """The layers with channels that must stay, each with the reason for the first of them."""
        for source in self.ledger.sources:
            units = self._line(source.atoms)
            if not units.all():
                fixed = source.atoms.numpy()[units == 0]
                yield FrozenChannels(source.node, source.path, len(fixed), self.ledger.reason(int(fixed[0])) or _LONE)

    def _outside(self, inside: set[str]) -> dict[str, str]:
        """Why each parameter of two or more dimensions stays whole whose path is not ``inside`` of any group."""
        matrices = matrices_of(self.flow.graph_module)
        return {each.path: self._why_outside(each) for each in matrices if not inside.intersection(each.paths)}

    def _why_outside(self, matrix: Matrix) -> str:
        if any(origin(node.args[1]) is None for node in matrix.layers):
            return "its weight is computed"
        nodes = (*matrix.layers, *matrix.modules, *matrix.others)
        unfollowed = next((self.flow.unfollowed[node] for node in nodes if node in self.flow.unfollowed), None)
        if unfollowed is not None:
            return unfollowed
        own = [labels for (path, _), labels in self.ledger.slots.items() if path in matrix.paths]
        own += [self.ledger.plain[path] for path in matrix.paths if path in self.ledger.plain]
        atoms = torch.cat([compact(labels).reshape(-1) for labels in own]) if own else torch.zeros(0, device="cpu")
        atoms = atoms[atoms > 0]
        return (self.ledger.reason(int(atoms[0])) or _LONE) if len(atoms) else _NONE


def _once(values: Iterable[_T]) -> list[_T]:
    """The objects without repetition, in order."""
    return list({id(each): each for each in values}.values())
