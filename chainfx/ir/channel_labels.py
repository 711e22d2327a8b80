"""Label tensors, and the ledger of what propagation finds out about them.

A *label tensor* (int64) has the shape of an activation and says of every element which *atom* it belongs to: atom
``a > 0`` is one channel of one source (an output channel of a layer, an element of a plain parameter), 0 is something
that must stay. A dimension along which the labels are constant has stride 0, so label tensors are small and
torch's own view functions move them for free.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "Labels",
    "Ledger",
    "SizeNote",
    "Source",
    "all_of",
    "any_of",
    "blank",
    "compact",
    "fitted",
    "identity",
    "select_first",
    "spread",
    "varying",
]

Labels = Tensor
IntArray = NDArray[np.int64]

RECTANGLE = "it is folded with channels that must stay, so that the kept ones would not form a rectangle"


def blank(shape: torch.Size | tuple[int, ...]) -> Labels:
    """A label tensor of that shape in which everything must stay."""
    return torch.zeros((), dtype=torch.int64).expand(shape)


def varying(labels: Labels) -> tuple[int, ...]:
    """The dimensions along which the labels differ."""
    shape = labels.shape
    return tuple([d for d, step in enumerate(labels.stride()) if step and shape[d] > 1])


def compact(labels: Labels, beside: tuple[int, ...] = ()) -> Labels:
    """The labels cut to size 1 in every dimension along which they do not differ, except the dimensions ``beside``."""
    shape, steps = labels.shape, labels.stride()
    sizes = [size if step or d in beside else 1 for d, (size, step) in enumerate(zip(shape, steps, strict=True))]
    return labels.as_strided(sizes, steps)


def identity(labels: Labels) -> tuple[int, ...]:
    """What two views of the same labels have in common."""
    return (labels.data_ptr(), *labels.shape, *labels.stride())


def spread(labels: Labels) -> Labels:
    """The same labels with stride 0 wherever they do not differ."""
    small = compact(labels)
    steps = small.stride()
    for dim in varying(small):
        corner = small.as_strided((2,), (steps[dim],)).tolist()
        if corner[0] == corner[1]:
            first = small.narrow(dim, 0, 1)
            small = first if bool((small == first).all()) else small
    return small.expand(labels.shape)


def select_first(labels: Labels, dims: tuple[int, ...]) -> Labels:
    """The labels at index 0 of ``dims`` (kept as size 1)."""
    if not dims:
        return labels
    return labels.as_strided([1 if d in dims else size for d, size in enumerate(labels.shape)], labels.stride())


def fitted(labels: Labels, shape: torch.Size) -> Labels | None:
    """The labels at the elements of a tensor that is broadcast to them; ``None`` if one of these meets several."""
    if len(shape) > labels.dim():
        return None
    moving, missing = varying(labels), labels.dim() - len(shape)
    sizes = (*[1] * missing, *shape)
    if any(d in moving if size == 1 else size != labels.size(d) for d, size in enumerate(sizes)):
        return None
    return select_first(labels, tuple(d for d, size in enumerate(sizes) if size == 1))[(0,) * missing]


def any_of(labels: Labels) -> bool:
    """Whether any label is not 0."""
    return int(np.count_nonzero(compact(labels).numpy())) > 0


def all_of(labels: Labels) -> bool:
    """Whether no label is 0."""
    small = compact(labels).numpy()
    return int(np.count_nonzero(small)) == small.size


@dataclass(frozen=True, slots=True)
class Source:
    """A weight dimension that makes channels: its layer's node name, parameter path, dimension and atoms (size,)."""

    node: str
    path: str
    dim: int
    atoms: Labels


@dataclass(frozen=True, slots=True)
class SizeNote:
    """Sizes written in a node's arguments that count channels.

    ``kind`` says what is written: ``size`` (one integer at ``where``), ``shape`` (a computed tuple of them), ``slice``
    (start and stop of the slice at ``where``), ``split`` (the sizes of the parts), ``attribute`` (an integer of the
    module that is called, named by ``where``), ``scale`` (nothing: a factor that follows from the size) or ``number``
    (a computed number that must stay what it was). ``counts``: for each integer a label tensor and the dimension whose
    kept positions it counts.
    """

    node: str
    kind: str
    where: tuple[int | str, ...]
    counts: tuple[tuple[Labels, int], ...]


@dataclass(slots=True)
class Ledger:
    """What propagation finds out: atoms, couplings, frozen atoms, parameter dimensions and literals."""

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
    _found: IntArray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))

    def fresh(self, count: int) -> Labels:
        """New atoms, shape (count,)."""
        self.size += count
        return torch.arange(self.size - count, self.size)

    def source(self, node: str, path: str, dim: int, size: int) -> Labels:
        """The atoms of a weight dimension that makes channels; one of size 1 makes none that could be removed."""
        known = self.slots.get((path, dim))
        if size == 1 or (known is not None and any((path, dim) == (s.path, s.dim) for s in self.sources)):
            return blank((size,)) if known is None else known
        atoms = self.fresh(size)
        self.sources.append(Source(node, path, dim, atoms))
        self.register(path, dim, atoms)
        return atoms

    def register(self, path: str, dim: int, labels: Labels) -> None:
        """State that dimension ``dim`` of the parameter at ``path`` has these labels, shape (size,)."""
        known = self.slots.setdefault((path, dim), labels)
        if known is not labels:
            self.couple(known, labels, "it shares a parameter with channels that must stay")

    def parameter(self, path: str, shape: torch.Size) -> Labels:
        """The labels of a plain parameter: an atom for each element, so that what it meets tells its channels."""
        if path not in self.plain:
            first = self.size
            count = math.prod(shape)
            self.plain[path] = blank(shape) if count <= 1 else self.fresh(count).view(shape)
            self._plain_ranges.append((first, self.size))
        return self.plain[path]

    def select(self, path: str, index: Tensor, labels: Labels, dim: int) -> Labels:
        """The labels at constant positions along ``dim``; the tensor of positions at ``path`` follows the channels."""
        line = self.vector(labels, dim, f"it is selected by {path!r} beside its channels")
        known = self.indices.setdefault(path, line)
        self.couple(known, line, f"it is selected by {path!r}, as are channels that must stay")
        self.register(path, 0, line[index])
        return line[index].view(-1, *[1] * (labels.dim() - dim - 1))

    def is_plain(self, labels: Labels) -> bool:
        """Whether all atoms of a labelled tensor are elements of plain parameters."""
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
        """State that no channel among these labels can be removed."""
        if any_of(labels):
            self.frozen.append((compact(labels).reshape(-1), reason))

    def couple(self, left: Labels, right: Labels, reason: str) -> None:
        """State that equal positions of two label tensors of one shape go together; what meets a 0 is frozen."""
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
        """State that nothing goes along ``dims``: couple over them, or freeze if the labels differ nowhere else."""
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
        """Freeze everything if the labels differ along one of ``dims``."""
        if not set(dims) & set(varying(labels)):
            return labels
        self.freeze(labels, reason)
        return blank(labels.shape)

    def vector(self, labels: Labels, dim: int, reason: str) -> Labels:
        """The labels along ``dim``, shape (size,), after pinning all other dimensions."""
        if varying(labels) == (dim,):
            return labels if labels.dim() == 1 else labels.as_strided((labels.size(dim),), (labels.stride(dim),))
        others = tuple(d for d in range(labels.dim()) if d != dim)
        pinned = self.pin(labels, others, reason)
        return select_first(pinned, others).reshape(-1)

    def remember(self, labels: Labels) -> None:
        """Note a tensor; if its labels differ along several dimensions, the kept elements must form a rectangle."""
        if sum(map(bool, labels.stride())) > 1 and len(varying(labels)) > 1:
            small = compact(labels)
            self.rectangles.setdefault(identity(small), small)

    def components(self) -> IntArray:
        """The component of every atom, shape (size,), numbered by first atom; component 0 is what must stay."""
        self._settle_parameters()
        rectangles = [*self.rectangles.values(), *self.plain.values()]
        while True:
            component = self._connected()
            again = [r for r in rectangles if self._square(r, component)]
            if not again:
                return component

    def _settle_parameters(self) -> None:
        """Freeze the channels of parameters that are also used in a way that their slices do not show."""
        for path in self.plain.keys() & {path for path, _ in self.slots}:
            self.opaque.setdefault(path, f"parameter {path!r} is used both by a layer and as a plain tensor")
        for (path, _), labels in (*self.slots.items(), *(((path, 0), labels) for path, labels in self.plain.items())):
            if path in self.opaque:
                self.freeze(labels, self.opaque[path])

    def reason(self, atom: int) -> str | None:
        """The first reason that was found for the component of an atom to stay; ``None`` if it need not."""
        component = self._found[atom]
        return next((why for atoms, why in self.frozen if bool((self._found[atoms.numpy()] == component).any())), None)

    def _connected(self) -> IntArray:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        known = self._found if len(self._found) == self.size else np.arange(self.size)
        left, right = (known[torch.cat([torch.zeros(0, dtype=torch.int64), *side]).numpy()] for side in self._sides())
        left, right = left[left != right], right[left != right]
        count = int(known.max()) + 1
        graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(count, count))
        self._found = found = connected_components(graph, directed=False)[1].astype(np.int64)[known]
        self._edges.clear()
        fixed = np.zeros(int(found.max()) + 1, dtype=bool)
        fixed[found[0]] = True
        for atoms, _ in self.frozen:
            fixed[found[atoms.numpy()]] = True
        return _renumbered(np.where(fixed[found], found[0], found))

    def _sides(self) -> tuple[list[Labels], list[Labels]]:
        return [left for left, _ in self._edges], [right for _, right in self._edges]

    def _square(self, labels: Labels, component: IntArray) -> bool:
        """Couple a tensor over all dimensions but one if its components differ along several; whether they did."""
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
    """Two label tensors of one shape without the lines that both repeat, as tokens do along all positions but one."""
    for dim in range(left.dim()):
        size = left.size(dim)
        if size > 1:
            same = torch.ones((), dtype=torch.bool)
            for each in (left, right):
                same = same & (each.narrow(dim, 1, size - 1) == each.narrow(dim, 0, size - 1))
            new = (~same).movedim(dim, 0).flatten(1).any(1) if same.dim() > 1 else ~same
            places = torch.cat([torch.zeros(1, dtype=torch.int64), new.nonzero()[:, 0] + 1])
            left, right = left.index_select(dim, places), right.index_select(dim, places)
    return left, right


def _distinct(units: Labels, dim: int) -> int:
    """How many units a line along ``dim`` has (the line with the most non-zero start, the first one, is looked at)."""
    others = tuple(d for d in range(units.dim()) if d != dim)
    return int(select_first(units, others).unique().numel())


def _step(labels: Labels, dim: int) -> int:
    """How far apart in their source neighbours along ``dim`` are; the nearer ones are positions within a fold."""
    first = labels[tuple(slice(0, 2) if d == dim else 0 for d in range(labels.dim()))]
    return abs(int(first[1] - first[0]))


def _renumbered(found: IntArray) -> IntArray:
    """Component numbers in order of their first atom."""
    first = np.full(int(found.max()) + 1, len(found))
    first[found[::-1]] = np.arange(len(found))[::-1]  # of several, the last to be written
    rank = np.empty_like(first)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[found]
