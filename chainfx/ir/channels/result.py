"""What the channel analysis finds out: groups of channels, frozen channels, and what surgery needs to remove them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chainfx.errors import InputError
from chainfx.ir.channels.walk import Fold
from chainfx.rendering import rendered

__all__ = ["Axis", "ChannelAnalysis", "ChannelGroup", "FrozenChannels", "Member", "SizeLiteral", "SourceLayer"]

IntArray = NDArray[np.int64]


class Member(NamedTuple):
    """Slices of one parameter that belong to a group.

    Position ``positions[i]`` along dimension ``dim`` of the parameter or buffer at ``path`` is part of unit
    ``units[i]``.
    """

    path: str
    dim: int
    positions: IntArray
    units: IntArray


class SourceLayer(NamedTuple):
    """A layer that makes channels: its node's name, and the path and output dimension of its weight."""

    node: str
    path: str
    dim: int


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """``size`` units that can be removed one by one; a unit is a set of channels that only go together.

    ``name`` is the node name of the first source layer (with ``/2``, ``/3``, ... if its channels are in several
    groups), ``sources`` are the layers that make the channels, ``members`` all the parameter slices that a unit
    consists of. Units are numbered in the order of their first channel. ``parameters`` counts the elements of all
    parameters with a dimension in the group.
    """

    name: str
    size: int
    sources: tuple[SourceLayer, ...]
    members: tuple[Member, ...]
    parameters: int


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
        count = len(self.units) - int(np.count_nonzero(removed[self.units]))
        return (*self.shape[: self.dim], count, *self.shape[self.dim + 1 :])


class SizeLiteral(NamedTuple):
    """Integers in a node's arguments that count channels; see :class:`~chainfx.ir.channels.ledger.SizeNote`."""

    node: str
    kind: str
    where: tuple[int | str, ...]
    counts: tuple[tuple[Axis, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class ChannelAnalysis:
    """The channel groups of a graph and the channels that must stay; ``print`` shows both.

    ``fold`` is what was kept of channels that a product of activations sees as (heads, width); ``attention`` names the
    groups whose channels enter such a product; ``products`` has for each of these nodes an :class:`Axis` for every
    tensor argument in order and then one for the output, so that its MACs can be computed without surgery.
    ``parameters`` counts the elements of all parameters, ``prunable`` those of parameters with a dimension in a group.

    The other fields are what surgery needs, with units of all groups numbered through from 1: ``slots`` (the units
    along a parameter dimension), ``literals``, ``values`` and ``readers`` for numbers that are computed from sizes, and
    ``indices`` (the units along the dimension that a tensor of positions refers to).
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[FrozenChannels, ...]
    fold: Fold
    attention: frozenset[str]
    products: Mapping[str, tuple[Axis, ...]] = field(repr=False)
    parameters: int
    prunable: int
    slots: Mapping[tuple[str, int], IntArray] = field(repr=False)
    literals: tuple[SizeLiteral, ...] = field(repr=False)
    readers: Mapping[str, Axis] = field(repr=False)
    values: Mapping[str, Any] = field(repr=False)
    indices: Mapping[str, IntArray] = field(repr=False)

    def group(self, name: str) -> ChannelGroup:
        """The group of that name; raises :class:`InputError` if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise InputError(f"there is no channel group {name!r}; use one of {', '.join(g.name for g in self.groups)}.")

    def __str__(self) -> str:
        return rendered(self, "text")

    def to_dict(self) -> dict[str, Any]:
        """Groups, frozen channels and totals as JSON values."""
        return {
            "fold": self.fold,
            "parameters": self.parameters,
            "prunable": self.prunable,
            "groups": [
                {
                    "name": group.name,
                    "size": group.size,
                    "attention": group.name in self.attention,
                    "parameters": group.parameters,
                    "sources": [source._asdict() for source in group.sources],
                    "members": [{"path": m.path, "dim": m.dim, "positions": len(m.positions)} for m in group.members],
                }
                for group in self.groups
            ],
            "frozen": [asdict(each) for each in self.frozen],
        }
