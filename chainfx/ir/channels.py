"""Which channels of a network go together, and which cannot be removed: found on the graph and shapes alone.

Every output channel of a layer gets a number, the numbers travel through the graph in *label tensors* moved by torch's
own view functions, and arithmetic that meets two of them couples them. No data, no gradients, no rule per network.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule

from chainfx.errors import InputError
from chainfx.ir.channel_flow import Flow
from chainfx.ir.channel_labels import Labels, Ledger, compact, spread, varying
from chainfx.ir.channel_layers import rule_of
from chainfx.ir.shapes import propagate_shapes

__all__ = ["ChannelAnalysis", "ChannelGroup", "FrozenChannels", "Member", "SourceLayer", "analyse_channels"]

IntArray = NDArray[np.int64]

_LONE = "all its channels are one unit"


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """Slices of one parameter that belong to a group.

    Position ``positions[i]`` along dimension ``dim`` of the parameter or buffer at ``path`` is part of unit
    ``units[i]``.
    """

    path: str
    dim: int
    positions: IntArray
    units: IntArray


@dataclass(frozen=True, slots=True)
class SourceLayer:
    """A layer that makes channels: its node's name, and the path and output dimension of its weight."""

    node: str
    path: str
    dim: int


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """``size`` units that can be removed one by one; a unit is a set of channels that only go together.

    ``name`` is the node name of the first source layer (with ``/2``, ``/3``, ... if its channels are in several
    groups), ``sources`` are the layers that make the channels, ``members`` all the parameter slices that a unit
    consists of. Units are numbered in the order of their first channel.
    """

    name: str
    size: int
    sources: tuple[SourceLayer, ...]
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class FrozenChannels:
    """``channels`` outputs of the layer at node ``node`` that cannot be removed, and the first reason for it."""

    node: str
    path: str
    channels: int
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """The units along the one dimension of a tensor that can shrink (0: stays); ``dim`` is ``None`` if none can."""

    shape: tuple[int, ...]
    dim: int | None = None
    units: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def kept(self, removed: NDArray[np.bool_]) -> tuple[int, ...]:
        """The shape without the removed units."""
        if self.dim is None:
            return self.shape
        count = int((~removed[self.units]).sum())
        return (*self.shape[: self.dim], count, *self.shape[self.dim + 1 :])


@dataclass(frozen=True, slots=True, eq=False)
class SizeLiteral:
    """Integers in a node's arguments that count channels; see :class:`~chainfx.ir.channel_labels.Literal`."""

    node: str
    kind: str
    where: tuple[int | str, ...]
    counts: tuple[tuple[Axis, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class ChannelAnalysis:
    """The channel groups of a graph and the channels that must stay; ``print`` shows both.

    The other fields are what surgery needs, with units of all groups numbered through from 1: ``slots`` (the units
    along a parameter dimension), ``literals``, and ``values`` and ``readers`` for numbers that are computed from sizes.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[FrozenChannels, ...]
    slots: Mapping[tuple[str, int], IntArray] = field(repr=False)
    literals: tuple[SizeLiteral, ...] = field(repr=False)
    readers: Mapping[str, Axis] = field(repr=False)
    values: Mapping[str, Any] = field(repr=False)

    def group(self, name: str) -> ChannelGroup:
        """The group of that name; raises :class:`InputError` if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise InputError(f"there is no channel group {name!r}; use one of {', '.join(g.name for g in self.groups)}.")

    def __str__(self) -> str:
        lines = [f"channel groups: {len(self.groups)}, units: {sum(g.size for g in self.groups)}"]
        for group in self.groups:
            sources = ", ".join(source.node for source in group.sources)
            lines.append(
                f"  {group.name}: {group.size} units made by {sources}; {len(group.members)} parameter dimensions"
            )
        lines += [f"  frozen {each.node}: {each.channels} channels, {each.reason}" for each in self.frozen]
        return "\n".join(lines)


def analyse_channels(graph_module: GraphModule, example_inputs: Sequence[Tensor]) -> ChannelAnalysis:
    """Find the channel groups of a graph in train form.

    ``example_inputs`` are positional, batch first; only their shapes matter. The outputs of the network, its inputs,
    and whatever meets an operator that has no rule are frozen, with the reason. Raises :class:`InputError` when the
    network does not accept the inputs.

    >>> from torch import nn
    >>> from chainfx.ir.capture import capture
    >>> x = torch.zeros(1, 3, 8, 8)
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    >>> print(analyse_channels(capture(model, (x,)), (x,)))
    channel groups: 1, units: 4
      _0: 4 units made by _0; 7 parameter dimensions
      frozen _3: 2 channels, it is an output of the network
    """
    with _evaluating(graph_module):
        _shapes(graph_module, example_inputs)
        flow = Flow(graph_module)
        flow.run(rule_of)
    return _Grouping(flow).analysis()


def _shapes(graph_module: GraphModule, example_inputs: Sequence[Tensor]) -> None:
    """Shapes for one sample, which keeps labels small, or for the whole batch where its size is written down."""
    try:
        propagate_shapes(graph_module, [each[:1] for each in example_inputs])
    except (InputError, IndexError):
        propagate_shapes(graph_module, example_inputs)


@contextmanager
def _evaluating(graph_module: GraphModule) -> Iterator[None]:
    modes = {module: module.training for module in graph_module.modules()}
    graph_module.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class _Grouping:
    """From components of atoms to groups of units."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.ledger: Ledger = flow.ledger
        component = self.ledger.components()
        kind = self._kinds(component)
        lone = (np.bincount(kind) == 1)[kind]
        kind[lone] = 0
        self.count, unit, self.bounds = self._numbered(kind)
        self.units = unit[component]

    def _kinds(self, component: IntArray) -> IntArray:
        """The kind of every component: those in the same parameter dimensions and slices; 0 if no layer makes it."""
        kind = np.zeros(int(component.max()) + 1, dtype=np.int64)
        for source in self.ledger.sources:
            _refine(kind, component[source.atoms.numpy()])
        made = kind > 0
        for labels in [*self.ledger.slots.values(), *self.ledger.parts]:
            _refine(kind, component[compact(labels)[0].reshape(-1).numpy()])
        kind[~made] = 0
        kind[0] = 0
        return kind

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
        slots = {key: self.units[labels.numpy()] for key, labels in self.ledger.slots.items()}
        for path, labels in self.ledger.plain.items():
            axis = self._axis(labels)
            if axis.dim is not None:
                slots[path, axis.dim] = axis.units
        slots = {key: units for key, units in slots.items() if units.any()}
        return ChannelAnalysis(
            groups=self._groups(slots),
            frozen=tuple(self._frozen()),
            slots=slots,
            literals=tuple(self._literals()),
            readers={node.name: self._axis(labels) for node, labels in self.flow.readers.items()},
            values={node.name: value for node, value in self.flow.values.items()},
        )

    def _axis(self, labels: Labels) -> Axis:
        units = spread(torch.from_numpy(self.units)[compact(labels)[0]]).expand(labels.shape)
        moving = varying(units)
        if not moving:
            return Axis(tuple(labels.shape))
        line = units[tuple(slice(None) if d == moving[0] else 0 for d in range(units.dim()))]
        return Axis(tuple(labels.shape), moving[0], line.numpy())

    def _count(self, labels: Labels, dim: int) -> tuple[Axis, int]:
        return (self._axis(labels) if labels.numel() else Axis(tuple(labels.shape))), dim

    def _literals(self) -> Iterator[SizeLiteral]:
        for each in self.ledger.literals:
            counts = tuple(self._count(labels, dim) for labels, dim in each.counts)
            yield SizeLiteral(each.node, each.kind, each.where, counts)

    def _groups(self, slots: Mapping[tuple[str, int], IntArray]) -> tuple[ChannelGroup, ...]:
        members: list[list[Member]] = [[] for _ in range(self.count)]
        starts = np.array(self.bounds)
        for (path, dim), units in slots.items():
            positions = np.flatnonzero(units)
            index = np.searchsorted(starts, units[positions], side="right") - 1
            for group in np.unique(index):
                inside = index == group
                members[group].append(Member(path, dim, positions[inside], units[positions][inside] - starts[group]))
        groups: list[ChannelGroup] = []
        taken: dict[str, int] = {}
        of = {(s.path, s.dim): SourceLayer(s.node, s.path, s.dim) for s in self.ledger.sources}
        for place, found in enumerate(members):
            sources = tuple(source for key, source in of.items() if any((m.path, m.dim) == key for m in found))
            name = sources[0].node
            taken[name] = taken.get(name, 0) + 1
            unique = name if taken[name] == 1 else f"{name}/{taken[name]}"
            groups.append(ChannelGroup(unique, self.bounds[place + 1] - self.bounds[place], sources, tuple(found)))
        return tuple(groups)

    def _frozen(self) -> Iterator[FrozenChannels]:
        """The sources with channels that must stay, with the first reason for the first of them."""
        for source in self.ledger.sources:
            atoms = source.atoms.numpy()
            fixed = atoms[self.units[atoms] == 0]
            if len(fixed):
                yield FrozenChannels(source.node, source.path, len(fixed), self.ledger.reason(int(fixed[0])) or _LONE)


def _refine(kind: IntArray, members: IntArray) -> None:
    """Give the members of a set new kinds, so that two of one kind are either both in the set or both not."""
    _, inverse = np.unique(kind[members], return_inverse=True)
    kind[members] = int(kind.max()) + 1 + inverse
