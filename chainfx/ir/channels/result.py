"""What the channel analysis gives: groups of channels, frozen channels, and what surgery needs to remove them."""

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
    """The slices of one parameter that belong to a group.

    The slice at ``positions[i]`` along dimension ``dim`` of the parameter or buffer at ``path`` is part of unit
    ``units[i]``, and goes with it.
    """

    path: str
    dim: int
    positions: IntArray
    units: IntArray


class SourceLayer(NamedTuple):
    """A layer that makes channels: the name of its node, the path of its weight, and the dimension that makes them."""

    node: str
    path: str
    dim: int


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """A dependency group: ``size`` units, each a set of coupled channels, that can be removed one by one.

    ``name`` is the node name of the first layer that makes channels of the group, with ``/2``, ``/3``, ... after it if
    the channels of this layer are in several groups. ``sources`` are all layers that make them, and ``members`` the
    slices of parameters that the units consist of. Units are numbered from 0 in the order of their first channel.
    ``parameters`` is the number of elements of all parameters that have a dimension in the group.
    """

    name: str
    size: int
    sources: tuple[SourceLayer, ...]
    members: tuple[Member, ...]
    parameters: int


@dataclass(frozen=True, slots=True)
class FrozenChannels:
    """Outputs of a layer that cannot be removed: the layer's node, the path of its weight, how many, and why."""

    node: str
    path: str
    channels: int
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """The one dimension ``dim`` of a tensor that can shrink, or ``None``, and the unit of each position along it.

    Unit 0 stands for what stays.
    """

    shape: tuple[int, ...]
    dim: int | None = None
    units: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def kept(self, removed: NDArray[np.bool_]) -> tuple[int, ...]:
        """The shape that is left once the units go for which ``removed`` is true, shape (1 + number of units,)."""
        if self.dim is None:
            return self.shape
        count = len(self.units) - int(np.count_nonzero(removed[self.units]))
        return (*self.shape[: self.dim], count, *self.shape[self.dim + 1 :])


class SizeLiteral(NamedTuple):
    """Integers in a node's arguments that count channels, as :class:`~chainfx.ir.channels.ledger.SizeNote` has them."""

    node: str
    kind: str
    where: tuple[int | str, ...]
    counts: tuple[tuple[Axis, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class ChannelAnalysis:
    """The channel groups of a graph and the channels that must stay; ``print`` shows both.

    ``fold`` says whether the channels of attention are removed by ``width`` (the same positions of every head) or by
    ``heads`` (whole heads), and ``attention`` names the groups with such channels. ``products`` has, for the name of
    each node that multiplies two activations, an :class:`Axis` for every tensor argument in order and then one for the
    output, so that the multiply-accumulates that are left can be computed without surgery. ``outside`` says of every
    parameter of two or more dimensions that has none in a group, by path, why it stays whole. ``parameters`` counts the
    elements of all parameters, ``prunable`` those of the parameters that have a dimension in a group.

    The other fields are for surgery. In them the units of all groups are numbered through from 1, and 0 is what stays:
    ``slots`` has the units along a parameter dimension, by path and dimension; ``literals`` are the numbers of channels
    that are written in the graph; ``values`` are the numbers that nodes compute, and ``readers`` the tensors from whose
    sizes they are computed; ``indices`` has the units along the dimension that a tensor of positions refers to.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[FrozenChannels, ...]
    outside: Mapping[str, str] = field(repr=False)
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
