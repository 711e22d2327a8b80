"""From components of atoms to groups of units: what the walk over a graph amounts to."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import Node
from torch.fx.node import map_arg

from chainfx.ir.channel_flow import Flow
from chainfx.ir.channel_labels import Labels, Ledger, compact, identity, spread, varying
from chainfx.ir.channel_values import (
    Axis,
    ChannelAnalysis,
    ChannelGroup,
    FrozenChannels,
    Member,
    SizeLiteral,
    SourceLayer,
)

__all__ = ["Grouping"]

IntArray = NDArray[np.int64]

_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, which spreads the numbers multiplied by it
_LONE = "all its channels are one unit"


class Grouping:
    """The groups of what a walk over a graph found."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.ledger: Ledger = flow.ledger
        self._lines: dict[int, IntArray] = {}
        self._by_labels: dict[tuple[int, ...], IntArray] = {}
        self._axes: dict[tuple[int, ...], Axis] = {}
        component = self.ledger.components()
        kind = self._kinds(component)
        lone = (np.bincount(kind) == 1)[kind]
        kind[lone] = 0
        self.count, unit, self.bounds = self._numbered(kind)
        self.units = unit[component]
        self._group_of = np.repeat(np.arange(-1, self.count), np.diff([0, *self.bounds]))

    def _kinds(self, component: IntArray) -> IntArray:
        """The kind of every component: those in the same parameter dimensions and slices; 0 if no layer makes it.

        A kind is the hash of the numbers of the sets that a component is in.
        """
        kind = np.zeros(int(component.max()) + 1, dtype=np.uint64)
        made = np.zeros(len(kind), dtype=bool)
        if self.ledger.sources:
            made[component[torch.cat([source.atoms for source in self.ledger.sources]).numpy()]] = True
        made[0] = False
        given = {id(labels): labels for labels in (*self.ledger.slots.values(), *self.ledger.parts)}
        sets = {identity(labels): labels for labels in given.values()}
        for number, labels in enumerate(sets.values(), start=1):
            members = component[compact(labels).reshape(-1).numpy()]
            found = (kind[members] ^ np.uint64(number)) * _ODD
            kind[members] = found ^ (found >> np.uint64(29))
        _, small = np.unique(kind, return_inverse=True)
        return np.where(made, small + 1, 0)

    def _numbered(self, kind: IntArray) -> tuple[int, IntArray, list[int]]:
        """The number of kinds, the unit of every component, numbered from 1 kind by kind, and where kinds begin."""
        live = np.flatnonzero(kind)
        values, first = np.unique(kind[live], return_index=True)
        order = values[np.argsort(first, kind="stable")]
        rank = np.zeros(int(kind.max(initial=0)) + 1, dtype=np.int64)
        rank[order] = np.arange(len(order))
        sorted_live = live[np.argsort(rank[kind[live]], kind="stable")]
        unit = np.zeros(len(kind), dtype=np.int64)
        unit[sorted_live] = np.arange(1, len(live) + 1)
        sizes = np.bincount(rank[kind[live]], minlength=len(order))
        return len(order), unit, [1, *(1 + np.cumsum(sizes)).tolist()]

    def analysis(self) -> ChannelAnalysis:
        """All of it as one value."""
        lines = {key: self._line(labels) for key, labels in self.ledger.slots.items()}
        for path, labels in self.ledger.plain.items():
            axis = self._axis(labels)
            if axis.dim is not None:
                lines[path, axis.dim] = axis.units
        moving = {id(units): bool(units.any()) for units in {id(each): each for each in lines.values()}.values()}
        slots = {key: units for key, units in lines.items() if moving[id(units)]}
        tensors = {id(place.tensor): place.tensor for place in self.flow.places.values()}
        self._elements = {key: each.numel() for key, each in tensors.items() if isinstance(each, nn.Parameter)}
        groups = self._groups(slots)
        return ChannelAnalysis(
            groups=groups,
            frozen=tuple(self._frozen()),
            slots=slots,
            literals=tuple(self._literals()),
            readers={node.name: self._axis(labels) for node, labels in self.flow.readers.items()},
            indices={path: self._line(labels) for path, labels in self.ledger.indices.items()},
            values={node.name: value for node, value in self.flow.values.items()},
            fold=self.flow.fold,
            attention=frozenset(groups[index].name for index in self._attended()),
            parameters=sum(self._elements.values()),
            prunable=self._sum_of({path for path, _ in slots}),
            products={node.name: self._product(node) for node in self.flow.products},
        )

    def _line(self, labels: Labels) -> IntArray:
        """The units along a parameter dimension; equal labels have the very same array."""
        if id(labels) not in self._lines:
            key = identity(labels)
            if key not in self._by_labels:
                self._by_labels[key] = self.units[labels.numpy()]
            self._lines[id(labels)] = self._by_labels[key]
        return self._lines[id(labels)]

    def _attended(self) -> list[int]:
        """The places of the groups with channels that go into a product of two activations."""
        atoms = [compact(labels).reshape(-1) for labels in self.flow.attended]
        units = np.unique(self.units[torch.cat(atoms).numpy()]) if atoms else np.zeros(0, dtype=np.int64)
        return sorted(set(self._group_of[units[units > 0]].tolist()))

    def _product(self, node: Node) -> tuple[Axis, ...]:
        given: list[Node] = []
        map_arg((node.args, node.kwargs), given.append)
        tensors = [each for each in given if self.flow.is_tensor(each)]
        return tuple(self._axis(self.flow.label(each)) for each in (*tensors, node))

    def _axis(self, labels: Labels) -> Axis:
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
        """The groups that a line of units touches, each with its positions and its own units there."""
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
        """How many elements the parameters among these tensors have."""
        tensors = {id(self.flow.tensor(path)) for path in paths}
        return sum(self._elements.get(key, 0) for key in tensors)

    def _frozen(self) -> Iterator[FrozenChannels]:
        """The sources with channels that must stay, with the first reason for the first of them."""
        for source in self.ledger.sources:
            units = self._line(source.atoms)
            if not units.all():
                fixed = source.atoms.numpy()[units == 0]
                yield FrozenChannels(source.node, source.path, len(fixed), self.ledger.reason(int(fixed[0])) or _LONE)
