"""The ledger: what the walk over a graph has found out about channels, and what follows from it.

Rules write into it which atoms are coupled and which are frozen. :meth:`Ledger.components` then gives the connected
components: the sets of atoms that can only go together.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chainfx.ir.channels.labels import Labels, all_of, any_of, blank, compact, identity, select_first, spread, varying

__all__ = ["Ledger", "SizeNote", "Source"]

IntArray = NDArray[np.int64]

RECTANGLE = "it is folded with channels that must stay, so that the kept ones would not form a rectangle"


class Source(NamedTuple):
    """A dimension of a weight that makes channels.

    ``node`` is the name of the layer's node, ``path`` that of the weight, and ``atoms``, shape (size,), are the labels
    of the channels along dimension ``dim``.
    """

    node: str
    path: str
    dim: int
    atoms: Labels


class SizeNote(NamedTuple):
    """Numbers of channels that are written in the arguments of a node, and that surgery has to correct.

    ``kind`` says what is written:

    * ``size``: one integer, at ``where`` among the arguments (a position or keyword, then an index);
    * ``shape``: a computed tuple of sizes, and ``shape of``: another tensor with the shape that is meant;
    * ``slice``: the start and stop of the slice at ``where``;
    * ``split``: the sizes of the parts, along the dimension ``where``;
    * ``attribute``: an integer attribute of the module that is called, with the name ``where``;
    * ``scale``: nothing, but a default factor follows from the size, and must be written once the size changes;
    * ``number``: a computed number that enters arithmetic, and must stay what it was.

    ``counts`` has, for each integer, a label tensor and the dimension of it whose remaining positions are counted.
    """

    node: str
    kind: str
    where: tuple[int | str, ...]
    counts: tuple[tuple[Labels, int], ...]


@dataclass(slots=True)
class Ledger:
    """What a walk over a graph has found out.

    * ``sources``: the weight dimensions that make channels;
    * ``slots``: the labels along the dimensions of parameters and buffers, by path and dimension;
    * ``plain``: the labels of parameters that are used as tensors, by path;
    * ``indices``: the labels of the dimension that a constant tensor of positions refers to, by path;
    * ``literals``: the numbers of channels that are written in the graph;
    * ``parts``: slices of channels, whose units must not be mixed with those outside of the slice;
    * ``opaque``: parameters whose channels are frozen, by path, with the reason;
    * ``rectangles``: activations with channels along several dimensions, of which whole rows and columns must go;
    * ``frozen``: atoms that must stay, with the reason.

    Atoms are made in runs, one for each source, and mostly whole runs are coupled, in order, as by the addition of a
    residual block. Such a coupling is not written down atom by atom: the younger run gets the elder one to stand for
    it, which keeps the analysis of large networks fast.
    """

    size: int = 1
    sources: list[Source] = field(default_factory=list)
    slots: dict[tuple[str, int], Labels] = field(default_factory=dict)
    plain: dict[str, Labels] = field(default_factory=dict)
    indices: dict[str, Labels] = field(default_factory=dict)
    literals: list[SizeNote] = field(default_factory=list)
    parts: list[Labels] = field(default_factory=list)
    opaque: dict[str, str] = field(default_factory=dict)
    rectangles: dict[tuple[int, ...], Labels] = field(default_factory=dict)
    frozen: list[tuple[Labels, str]] = field(default_factory=list)
    _edges: list[tuple[Labels, Labels]] = field(default_factory=list)
    _pinned: dict[tuple[Any, ...], tuple[Labels, Labels]] = field(default_factory=dict)
    _plain_ranges: list[tuple[int, int]] = field(default_factory=list)
    _made: dict[int, Labels] = field(default_factory=dict)  # atoms that were made at once, by the first of them
    _whole: dict[tuple[int, ...], int] = field(default_factory=dict)  # the first of them, by where they lie
    _elder: dict[int, int] = field(default_factory=dict)  # the first of those that they all go with
    _found: IntArray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))

    def fresh(self, count: int) -> Labels:
        """New atoms, shape (count,)."""
        self.size += count
        atoms = torch.arange(self.size - count, self.size, device="cpu")
        self._made[self.size - count] = atoms
        self._whole[atoms.data_ptr(), count, 1] = self.size - count
        return atoms

    def eldest(self, labels: Labels) -> Labels:
        """The run that stands for these labels, if they are a whole run of atoms; else the labels themselves."""
        first = self._first(labels)
        return labels if first is None else self._made[self._root(first)]

    def unite(self, left: Labels, right: Labels) -> bool:
        """Couple two label tensors if each of them is one whole run of atoms along the same single dimension.

        Returns whether they were; if not, nothing has happened, and :meth:`couple` does it atom by atom.
        """
        first, second = self._first(left), self._first(right)
        if first is None or second is None or varying(left) != varying(right):
            return False
        elder, younger = sorted((self._root(first), self._root(second)))
        if elder != younger:
            self._elder[younger] = elder
        return True

    def _first(self, labels: Labels) -> int | None:
        """The first atom of the run that the labels are along one dimension; ``None`` if they are no whole run."""
        moving = varying(labels)
        if len(moving) != 1:
            return None
        return self._whole.get((labels.data_ptr(), labels.size(moving[0]), labels.stride(moving[0])))

    def _root(self, first: int) -> int:
        while first in self._elder:
            first = self._elder[first]
        return first

    def source(self, node: str, path: str, dim: int, size: int) -> Labels:
        """The atoms of a weight dimension that makes channels; new ones, if the dimension has none yet.

        A dimension of size 1 makes no channel that could be removed, and gets the label 0.
        """
        known = self.slots.get((path, dim))
        if size == 1 or (known is not None and any((path, dim) == (s.path, s.dim) for s in self.sources)):
            return blank((size,)) if known is None else known
        atoms = self.fresh(size)
        self.sources.append(Source(node, path, dim, atoms))
        self.register(path, dim, atoms)
        return atoms

    def register(self, path: str, dim: int, labels: Labels) -> None:
        """Note that the slices of a parameter along ``dim`` belong to these labels, shape (size,).

        A dimension that has labels already, because two layers share the parameter, couples both.
        """
        known = self.slots.setdefault((path, dim), labels)
        if known is not labels:
            self.couple(known, labels, "it shares a parameter with channels that must stay")

    def parameter(self, path: str, shape: torch.Size) -> Labels:
        """The labels of a parameter that is used as a tensor: an atom for each element.

        Which channels the elements belong to follows from the labels that they are coupled with later.
        """
        if path not in self.plain:
            first = self.size
            count = math.prod(shape)
            self.plain[path] = blank(shape) if count <= 1 else self.fresh(count).view(shape)
            self._plain_ranges.append((first, self.size))
        return self.plain[path]

    def select(self, path: str, index: Tensor, labels: Labels, dim: int) -> Labels:
        """The labels of ``x[..., index]`` along ``dim``; ``index`` is the constant tensor of positions at ``path``.

        When channels go, surgery removes their positions from that tensor and renumbers the others.
        """
        line = self.vector(labels, dim, f"it is selected by {path!r} beside its channels")
        known = self.indices.setdefault(path, line)
        self.couple(known, line, f"it is selected by {path!r}, as are channels that must stay")
        self.register(path, 0, line[index])
        return line[index].view(-1, *[1] * (labels.dim() - dim - 1))

    def is_plain(self, labels: Labels) -> bool:
        """Whether all atoms of a label tensor are elements of parameters that are used as tensors."""
        small = compact(labels)
        atoms = small[small > 0]
        low, high = (int(atoms.min()), int(atoms.max())) if atoms.numel() else (0, 0)
        if any(first <= low and high < last for first, last in self._plain_ranges):
            return True
        inside = torch.zeros_like(atoms, dtype=torch.bool)
        for first, last in self._plain_ranges:
            inside |= (atoms >= first) & (atoms < last)
        return bool(inside.all())

    def freeze(self, labels: Labels, reason: str) -> None:
        """Note that no channel among these labels can be removed, and why."""
        if any_of(labels):
            self.frozen.append((compact(labels).reshape(-1), reason))

    def couple(self, left: Labels, right: Labels, reason: str) -> None:
        """Couple what stands at equal positions of two label tensors of one shape.

        A channel that meets the label 0 meets something that stays, and is frozen for ``reason``.
        """
        if self.unite(left, right):
            return
        moving = (*varying(left), *varying(right))
        left, right = compact(left, moving), compact(right, moving)
        if identity(left) == identity(right):
            return
        if left.numel() > self.size:  # so that some pairs come more than once
            left, right = _without_repeats(left, right)
        left, right = left.reshape(-1), right.reshape(-1)
        if all_of(left) and all_of(right):
            self._edges.append((left, right))
            return
        differ = left != right
        left, right = left[differ], right[differ]
        both = (left != 0) & (right != 0)
        self.freeze((left + right)[~both], reason)
        self._edges.append((left[both], right[both]))

    def pin(self, labels: Labels, dims: tuple[int, ...], reason: str) -> Labels:
        """Note that no position along ``dims`` may go alone, and return the labels after that.

        If the labels differ along other dimensions too, all channels along ``dims`` are coupled, so that they go
        together. If they differ along ``dims`` only, they are frozen for ``reason``.
        """
        moving = varying(labels)
        along = tuple([d for d in dims if d in moving])
        if not along:
            return labels
        if len(along) == len(moving):
            self.freeze(labels, reason)
            return blank(labels.shape)
        key = (along, *identity(labels))
        if key not in self._pinned:
            self._pinned[key] = labels, select_first(labels, along).expand(labels.shape)
            self.couple(*self._pinned[key], reason)
        return self._pinned[key][1]

    def forbid(self, labels: Labels, dims: tuple[int, ...], reason: str) -> Labels:
        """Freeze all channels of a tensor that has channels along one of ``dims``, and return the labels after that."""
        if not set(dims) & set(varying(labels)):
            return labels
        self.freeze(labels, reason)
        return blank(labels.shape)

    def vector(self, labels: Labels, dim: int, reason: str) -> Labels:
        """The labels along ``dim`` alone, shape (size,); all other dimensions are pinned as by :meth:`pin`."""
        if varying(labels) == (dim,):
            return labels if labels.dim() == 1 else labels.as_strided((labels.size(dim),), (labels.stride(dim),))
        others = tuple(d for d in range(labels.dim()) if d != dim)
        pinned = self.pin(labels, others, reason)
        return select_first(pinned, others).reshape(-1)

    def remember(self, labels: Labels) -> None:
        """Note an activation: if it has channels along several dimensions, what is kept must be a whole rectangle.

        So must be what is kept of (heads, width) in attention: the same positions of every head, or whole heads.
        """
        if labels.stride().count(0) < labels.dim() - 1 and len(varying(labels)) > 1:
            small = compact(labels)
            self.rectangles.setdefault(identity(small), small)

    def components(self) -> IntArray:
        """The component that every atom belongs to, shape (size,).

        Atoms of one component can only go together. Components are numbered from 1 by their first atom; component 0 is
        what must stay.
        """
        self._settle_parameters()
        rectangles = [*self.rectangles.values(), *self.plain.values()]
        while True:
            component = self._connected()
            again = [r for r in rectangles if self._square(r, component)]
            if not again:
                return component

    def _settle_parameters(self) -> None:
        """Freeze the channels of parameters that something else reads too, which removing slices would change."""
        for path in self.plain.keys() & {path for path, _ in self.slots}:
            self.opaque.setdefault(path, f"parameter {path!r} is used both by a layer and as a plain tensor")
        for (path, _), labels in (*self.slots.items(), *(((path, 0), labels) for path, labels in self.plain.items())):
            if path in self.opaque:
                self.freeze(labels, self.opaque[path])

    def reason(self, atom: int) -> str | None:
        """The first reason why the component of an atom must stay; ``None`` if there is none."""
        component = self._found[atom]
        return next((why for atoms, why in self.frozen if bool((self._found[atoms.numpy()] == component).any())), None)

    def _connected(self) -> IntArray:
        if len(self._found) != self.size:
            self._found = self._united()
        if self._edges:
            self._join()
        stays = np.zeros(self.size, dtype=bool)
        stays[0] = True
        for atoms, _ in self.frozen:
            stays[self._found[atoms.numpy()]] = True
        goes = np.zeros(self.size, dtype=bool)
        goes[self._found] = True
        goes[stays] = False
        return (goes.cumsum() * goes)[self._found]

    def _united(self) -> IntArray:
        """For every atom the one that stands for it: itself, or its like in the eldest run that its run goes with."""
        atoms = np.arange(self.size)
        for first in self._elder:
            root, count = self._root(first), len(self._made[first])
            atoms[first : first + count] = atoms[root : root + count]
        return atoms

    def _join(self) -> None:
        """Work the couplings that were written down into ``_found``, the first atom of every atom's component."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        left, right = (self._found[torch.cat(side).numpy()] for side in zip(*self._edges, strict=True))
        graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(self.size, self.size))
        component = connected_components(graph, directed=False)[1][self._found]
        first = np.empty(self.size, dtype=np.int64)
        first[component[::-1]] = np.arange(self.size)[::-1]  # of several, the last to be written
        self._found = first[component]
        self._edges.clear()

    def _square(self, labels: Labels, component: IntArray) -> bool:
        """Make the kept part of an activation a rectangle, if its components differ along several dimensions.

        All dimensions but the one with the most components are coupled. Returns whether that was necessary.
        """
        labels = compact(labels)
        if len(varying(labels)) < 2:
            return False
        units = spread(torch.from_numpy(component)[labels])
        moving = varying(units)
        if len(moving) < 2:
            return False
        keep = max(moving, key=lambda d: (_distinct(units, d), -_step(labels, d)))
        others = tuple(d for d in moving if d != keep)
        first = select_first(units, others).expand(units.shape)
        wrong = units != first
        origin = select_first(labels, others).expand(labels.shape)
        both = wrong & (units != 0) & (first != 0)
        self._edges.append((labels[both], origin[both]))
        lone = wrong & ~both
        self.freeze(torch.where(units != 0, labels, origin)[lone], RECTANGLE)
        return True


def _without_repeats(left: Labels, right: Labels) -> tuple[Labels, Labels]:
    """Two label tensors of one shape, without the positions at which both repeat what stands right before.

    Along tokens, for example, all positions are alike.
    """
    for dim in range(left.dim()):
        size = left.size(dim)
        if size > 1:
            same = torch.ones((), dtype=torch.bool, device="cpu")
            for each in (left, right):
                same = same & (each.narrow(dim, 1, size - 1) == each.narrow(dim, 0, size - 1))
            new = (~same).movedim(dim, 0).flatten(1).any(1) if same.dim() > 1 else ~same
            places = torch.cat([torch.zeros(1, dtype=torch.int64, device="cpu"), new.nonzero()[:, 0] + 1])
            left, right = left.index_select(dim, places), right.index_select(dim, places)
    return left, right


def _distinct(units: Labels, dim: int) -> int:
    """How many different units the first line along ``dim`` has."""
    others = tuple(d for d in range(units.dim()) if d != dim)
    return int(select_first(units, others).unique().numel())


def _step(labels: Labels, dim: int) -> int:
    """How far apart neighbours along ``dim`` were where they were made: 1 within a head, its width between heads."""
    first = labels[tuple(slice(0, 2) if d == dim else 0 for d in range(labels.dim()))]
    return abs(int(first[1] - first[0]))
