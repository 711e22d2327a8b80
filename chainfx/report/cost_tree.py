"""The rows of a cost report as a tree by module path, with totals per module."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, takewhile
from typing import Any, Literal, get_args

from chainfx.bitops import HOROWITZ_2014, CostReport, CostRow
from chainfx.errors import InputError

__all__ = ["Branch", "Sort", "fitting_depth", "tree_of"]

Sort = Literal["order", "macs", "bitops"]
_Path = tuple[str, ...]
_Placed = tuple[_Path, CostRow]


@dataclass(frozen=True, slots=True)
class Branch:
    """A module with what is inside it, or a single node (``row``, and no children); totals are of one sample.

    ``energy``: in microjoules, by the table of :mod:`chainfx.bitops.energy`.
    """

    name: str
    macs: int
    nonzero_macs: int | Fraction
    elementwise: int
    bitops: int | Fraction
    moved_bits: int | Fraction
    energy: float
    nodes: int
    children: tuple[Branch, ...] = ()
    row: CostRow | None = None

    def walk(self, depth: int, level: int = 0) -> Iterator[tuple[int, Branch]]:
        """(Level, branch) for everything below, unfolded ``depth`` levels deep; what is next to the root is level 0."""
        for child in self.children if level < depth else ():
            yield level, child
            yield from child.walk(depth, level + 1)

    def widths(self) -> set[tuple[int | None, int | None]]:
        """The (weight, activation) bits of everything with MACs inside."""
        if self.row is not None:
            return {(self.row.weight_bits, self.row.activation_bits)} if self.row.macs else set()
        return set[tuple[int | None, int | None]]().union(*(child.widths() for child in self.children))


def tree_of(report: CostReport, sort: Sort = "order", *, flat: bool = False) -> Branch:
    """The rows of a report as a tree whose root is the whole network, with the report's worst-case totals.

    A node of which the graph does not tell the module belongs to the innermost module around both of its neighbours. A
    module that holds one node stands as that node, under the module's name. ``sort``: within every module, ``"order"``
    as they run, ``"macs"`` or ``"bitops"`` the dearest first. ``flat``: no modules, every node next to the root. Raises
    :class:`InputError` for another ``sort``.
    """
    if sort not in get_args(Sort):
        raise InputError(f"sort={sort!r} is not known; use {', '.join(map(repr, get_args(Sort)))}.")
    paths = [""] * len(report.rows) if flat else _paths(report.rows)
    placed = [(tuple(path.split(".")) if path else (), row) for path, row in zip(paths, report.rows, strict=True)]
    either = frozenset(tuple(name.split(".")) for name in report.conditions)
    root = _total("", _children(placed, (), either), dearest=False)
    return root if sort == "order" else _sorted(root, sort)


def fitting_depth(root: Branch, lines: int) -> int:
    """The largest depth, at least 1, at which the tree takes no more than ``lines`` lines."""
    sizes = Counter(level for level, _ in root.walk(sys.maxsize))
    totals = accumulate(sizes[level] for level in range(len(sizes)))
    return max(1, sum(1 for total in totals if total <= lines))


def _paths(rows: Sequence[CostRow]) -> list[str]:
    """The module path of every row; of a row without one what the rows with one before and after it have in common."""
    known = [row.module for row in rows]
    before, after = _carried(known), _carried(known[::-1])[::-1]
    return [path or _common(*pair) for path, *pair in zip(known, before, after, strict=True)]


def _carried(paths: Iterable[str]) -> list[str]:
    """Every path, or the last one before it where there is none."""
    found, last = [], ""
    for path in paths:
        last = path or last
        found.append(last)
    return found


def _common(first: str, second: str) -> str:
    """The innermost module around two: of ``a.b.c`` and ``a.b.d`` ``a.b``, of two calls of the same ``a.b`` ``a``."""
    if first == second:
        return first.rpartition(".")[0]
    pairs = zip(first.split("."), second.split("."), strict=False)
    return ".".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _children(placed: Sequence[_Placed], path: _Path, either: frozenset[_Path]) -> tuple[Branch, ...]:
    """The modules and nodes directly inside the module at ``path``, given everything inside with paths from there."""
    groups: dict[str | int, list[_Placed]] = {}
    for index, (below, row) in enumerate(placed):
        groups.setdefault(below[0] if below else index, []).append((below[1:], row))
    return tuple(
        _module(key, inside, (*path, key), either) if isinstance(key, str) else _leaf(inside[0][1].node, inside[0][1])
        for key, inside in groups.items()
    )


def _module(name: str, inside: Sequence[_Placed], path: _Path, either: frozenset[_Path]) -> Branch:
    """A module by its name; what holds nothing but another module stands as ``outer.inner``."""
    if len(inside) == 1:
        return _leaf(".".join((name, *inside[0][0])), inside[0][1])
    children = _children(inside, path, either)
    if len(children) == 1:
        return replace(children[0], name=f"{name}.{children[0].name}")
    return _total(name, children, dearest=path in either)


def _leaf(name: str, row: CostRow) -> Branch:
    costs = (row.macs, row.nonzero_macs, row.elementwise, row.bitops, row.moved_bits, HOROWITZ_2014.of(row) / 1e6)
    return Branch(name, *costs, nodes=1, row=row)


def _total(name: str, children: tuple[Branch, ...], *, dearest: bool) -> Branch:
    """A module with the sum of its children or, for the branches of a ``torch.cond``, the dearest of them."""
    add: Callable[[Iterable[Any]], Any] = (lambda costs: max(costs, default=0)) if dearest else sum
    return Branch(
        name,
        macs=add(child.macs for child in children),
        nonzero_macs=add(child.nonzero_macs for child in children),
        elementwise=add(child.elementwise for child in children),
        bitops=add(child.bitops for child in children),
        moved_bits=add(child.moved_bits for child in children),
        energy=add(child.energy for child in children),
        nodes=sum(child.nodes for child in children),
        children=children,
    )


def _sorted(branch: Branch, sort: Sort) -> Branch:
    children = sorted(branch.children, key=lambda child: -getattr(child, sort))
    return replace(branch, children=tuple(_sorted(child, sort) for child in children))
