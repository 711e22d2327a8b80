"""Branches on sizes that stay free: for which other sizes the code takes the same way.

Code such as ``if x.shape[1] > 1:`` is followed one way while it is traced. The graph then holds for the sizes for which
the condition comes out the same, and those are found by computing it, on shapes alone, for sizes from small to large.
Only conditions made of sizes by sums, products and comparisons are followed: they change their value once or twice on
the way up, not at every other size as the remainder of a division does.
"""

import linecache
import operator
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.proxy import TraceError

from chainfx.ir.graph import without_data

__all__ = ["Bounds", "Guard", "Place", "SizeError", "bounds_of", "is_simple", "line_here"]

Place = tuple[int, int]
"""The number of an input and a dimension of it."""

Evaluate = Callable[[Sequence[Tensor]], Mapping[Node, Any]]

_COMPARED = (operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne)
_SIMPLE = frozenset((operator.add, operator.sub, operator.mul, operator.neg, operator.getitem, getattr, *_COMPARED))
_OUTSIDE = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
_TRIED = (1, 2, 3, 4, 5, 7, 128, 509, 1024, 4099)


@dataclass(frozen=True, slots=True)
class Guard:
    """A number that the code branched on, its value for the example inputs, and the line of code that did."""

    node: Node
    value: Any
    line: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """For which sizes a graph holds: ``limits`` are the least and the largest (``None`` without bound) by place.

    Places of the same number in ``tied`` have to have one size. ``line``: of the code that is why, empty if all may be.
    """

    limits: Mapping[Place, tuple[int, int | None]] = field(default_factory=dict)
    tied: Mapping[Place, int] = field(default_factory=dict)
    line: str = ""


class SizeError(TraceError):
    """A size cannot stay free; ``line`` is the line of code that is why, with its file and number."""

    def __init__(self, line: str) -> None:
        super().__init__("a value that changes with a size that is to stay free")
        self.line = line


def is_simple(node: Node, is_number: Callable[[Node], bool]) -> bool:
    """Whether a number is made of sizes by sums, products and comparisons alone."""
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if not is_number(each):
            continue
        if each.target not in _SIMPLE and each.target not in ("size", "dim"):
            return False
        waiting += each.all_input_nodes
    return True


def bounds_of(guards: Sequence[Guard], examples: Sequence[Tensor], free: Iterable[Place], evaluate: Evaluate) -> Bounds:
    """The sizes of the ``free`` dimensions for which all guards keep their value.

    ``evaluate`` gives what the nodes of the graph give for inputs without data. Dimensions of the same size in the
    examples change together; where one of them alone would change a guard, they are tied. Raises :class:`SizeError`
    where the next sizes on both sides change one.
    """
    groups: dict[int, list[Place]] = {}
    for index, dim in free:
        groups.setdefault(examples[index].shape[dim], []).append((index, dim))
    limits: dict[Place, tuple[int, int | None]] = {}
    tied: dict[Place, int] = {}
    lines: list[str] = []
    for size, dims in groups.items():
        tried = sorted({*_TRIED, size - 1, size + 1, 2 * size + 1, 3 * size - 1} - {0, size})
        alone = [_changed(guards, _resized(examples, [dim], x), evaluate) for dim in _several(dims) for x in tried]
        if any(alone):
            lines += filter(None, alone)
            tied |= dict.fromkeys(dims, size)
        sides = ([x for x in reversed(tried) if x < size], [x for x in tried if x > size])
        (least, below), (most, above) = (_end(guards, size, side, examples, dims, evaluate) for side in sides)
        if least == most == size:
            raise SizeError(below)
        if below or above:
            limits |= dict.fromkeys(dims, (least if below else 0, most if above else None))
            lines += filter(None, (below, above))
    return Bounds(limits, tied, lines[0] if lines else "")


def _several(dims: Sequence[Place]) -> Sequence[Place]:
    return dims if len(dims) > 1 else ()


def _end(
    guards: Sequence[Guard],
    size: int,
    others: Sequence[int],
    examples: Sequence[Tensor],
    dims: Sequence[Place],
    evaluate: Evaluate,
) -> tuple[int, str]:
    """The last of ``others`` before a guard changes and the line of that guard, empty if none ever does."""
    last = size
    for other in others:
        changed = _changed(guards, _resized(examples, dims, other), evaluate)
        if changed:
            return last, changed
        last = other if changed is not None else last
    return last, ""


def _changed(guards: Sequence[Guard], inputs: Sequence[Tensor], evaluate: Evaluate) -> str | None:
    """The line of a guard that has another value for these inputs, ``None`` if the graph does not take them."""
    try:
        values = evaluate(inputs)
    except Exception:  # whatever an operation says of sizes that it does not take
        return None
    return next((guard.line for guard in guards if values[guard.node] != guard.value), "")


def _resized(examples: Sequence[Tensor], dims: Sequence[Place], size: int) -> list[Tensor]:
    found = [without_data(x) for x in examples]
    for index, dim in dims:
        shape = list(found[index].shape)
        shape[dim] = size
        found[index] = torch.empty(shape, dtype=found[index].dtype, device="meta")
    return found


def line_here() -> str:
    """The line of the model's own code that is running, as ``code`` at file:line."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OUTSIDE):
        frame = frame.f_back
    if frame is None:
        return "its forward"
    file = frame.f_code.co_filename
    return f"`{linecache.getline(file, frame.f_lineno).strip()}` at {Path(file).name}:{frame.f_lineno}"
