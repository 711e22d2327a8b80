"""k-means of the values of a weight: how centroids begin, and how they settle; one dimension makes all of it cheap.

On a line the values of a cluster are neighbours, so that clusters are ranges of the sorted values and a sum over one is
a difference of two prefix sums. Lloyd's step then costs k binary searches instead of n k distances, and the best
clustering of all is found by dynamic programming.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = ["INITS", "Init", "Values", "cluster", "members"]

Init = Literal["linear", "density", "random", "optimal"]
INITS: tuple[Init, ...] = get_args(Init)

_CELLS = 4096  # distinct values that the exact solver looks at
_ITERATIONS = 300

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Values:
    """The distinct ``points`` (n,) of a set of values, ascending, how often each is there, and their prefix sums.

    ``counts``, ``sums`` and ``squares`` are of the values before each place, so they have n + 1 entries.
    """

    points: _Floats
    counts: _Floats
    sums: _Floats
    squares: _Floats

    @classmethod
    def of(cls, values: NDArray[np.float32] | _Floats) -> "Values":
        """The distinct values of an array of any shape."""
        points, counts = np.unique(values.astype(np.float64), return_counts=True)
        return cls.weighted(points, counts.astype(np.float64))

    @classmethod
    def weighted(cls, points: _Floats, weights: _Floats) -> "Values":
        """Ascending points of which each stands for so many values."""
        before = (np.concatenate([[0.0], np.cumsum(each)]) for each in (weights, weights * points, weights * points**2))
        return cls(points, *before)

    def pooled(self, cells: int) -> "Values":
        """At most so many points: those in each of ``cells`` equal parts of the range become their mean."""
        if len(self.points) <= cells:
            return self
        edges = np.searchsorted(self.points, np.linspace(self.points[0], self.points[-1], cells + 1)[1:-1])
        ends = np.unique(np.concatenate([[0], edges, [len(self.points)]]))
        weights, sums = np.diff(self.counts[ends]), np.diff(self.sums[ends])
        return Values.weighted(sums / weights, weights)

    def means(self, ends: _Ints, otherwise: _Floats) -> _Floats:
        """The mean between each two of the places ``ends`` (k + 1,); ``otherwise`` (k,) where nothing lies between."""
        counts, sums = np.diff(self.counts[ends]), np.diff(self.sums[ends])
        return np.where(counts > 0, sums / np.maximum(counts, 1), otherwise)

    def error(self, book: _Floats) -> float:
        """The sum of the squared distances of all values to the nearest entry of an ascending codebook (k,)."""
        ends = _ends(self, book)
        counts, sums, squares = (np.diff(each[ends]) for each in (self.counts, self.sums, self.squares))
        return float(max((squares - 2 * book * sums + book**2 * counts).sum(), 0.0))


def cluster(values: Values, entries: int, init: Init, draw: np.random.Generator) -> _Floats:
    """The codebook (at most ``entries``, ascending, float64) that k-means finds for some values.

    ``linear``: centroids begin equally far apart from the least value to the greatest; ``density``: where the values'
    distribution function is at equal steps; ``random``: at values that are drawn (Forgy); Han et al. 2016, sec. 3.2.
    Lloyd's algorithm then goes on until nothing moves. ``optimal`` has the least squared error of all codebooks where
    there are at most 4,096 distinct values; of more, equally long parts of the range count as one value each before
    Lloyd's algorithm sees all of them. Of fewer distinct values than entries each becomes an entry.

    >>> cluster(Values.of(np.array([0.0, 0.1, 1.0, 1.1, 5.0])), 3, "optimal", np.random.default_rng(0)).round(2)
    array([0.05, 1.05, 5.  ])
    """
    if len(values.points) <= entries:
        return values.points
    if init == "optimal":
        cells = values.pooled(_CELLS)
        ends = _best_ranges(cells, entries)
        book = cells.means(ends, cells.points[np.minimum(ends[:-1], len(cells.points) - 1)])
    elif init == "linear":
        book = np.linspace(values.points[0], values.points[-1], entries)
    elif init == "density":
        ranks = (np.arange(entries) + 0.5) / entries * values.counts[-1]
        book = values.points[np.searchsorted(values.counts, ranks, side="right") - 1]
    else:
        book = np.sort(draw.choice(values.points, entries, replace=False))
    return _settled(values, book)


def members(weight: NDArray[np.float32] | _Floats, book: _Floats) -> NDArray[np.uint8]:
    """For each value, of any shape, the place of the nearest entry of an ascending codebook of at most 256."""
    return np.searchsorted(_middles(book), weight.astype(np.float64)).astype(np.uint8)


def _middles(book: _Floats) -> _Floats:
    return (book[1:] + book[:-1]) / 2


def _ends(values: Values, book: _Floats) -> _Ints:
    """The places (k + 1,) between which the points nearest to each entry lie."""
    inner = np.searchsorted(values.points, _middles(book), side="right")
    return np.concatenate([[0], inner, [len(values.points)]])


def _settled(values: Values, book: _Floats) -> _Floats:
    """Lloyd's algorithm; an entry that nothing is nearest to stays where it is."""
    for _ in range(_ITERATIONS):
        moved = np.sort(values.means(_ends(values, book), book))
        if np.array_equal(moved, book):
            break
        book = moved
    return book


def _best_ranges(values: Values, entries: int) -> _Ints:
    """The ends (entries + 1,) of the ranges with the least squared error to their means.

    Dynamic programming over the number of ranges (Wang and Song 2011, Ckmeans.1d.dp). The best beginning of the last
    range moves only upwards with its end, so that each row is filled by halving: O(k n log n) for n points.
    """
    size = len(values.points)
    best = _costs(values, np.zeros(size, np.int64), np.arange(1, size + 1))
    begins = np.zeros((entries, size), np.int64)
    for row in range(1, entries):
        best, begins[row] = _next_row(values, best, row)
    ends = [size]
    for row in range(entries - 1, 0, -1):
        ends.append(int(begins[row, ends[-1] - 1]))
    return np.array([0, *reversed(ends)], np.int64)


def _costs(values: Values, begin: _Ints, end: _Ints) -> _Floats:
    """The squared error of each range of points from ``begin`` up to but not including ``end`` to its mean."""
    counts, sums, squares = (each[end] - each[begin] for each in (values.counts, values.sums, values.squares))
    return np.maximum(squares - sums**2 / counts, 0.0)


def _next_row(values: Values, before: _Floats, row: int) -> tuple[_Floats, _Ints]:
    """The least error of the first j points in ``row + 1`` ranges, for every j, and where the last of them begins.

    ``before``: the same for one range less. All ends of a level are looked at together, each within the bounds that
    its neighbours of the levels above set.
    """
    size = len(before)
    best, begins = np.full(size, np.inf), np.full(size, row, np.int64)
    step = 1 << (size - row - 1).bit_length()
    known = np.full(size, -1, np.int64)
    while step:
        ends = np.arange(row + step - 1, size, 2 * step)
        if len(ends):
            low = np.where(ends - step >= row, known[np.maximum(ends - step, 0)], row)
            above = ends + step
            high = np.where(above < size, known[np.minimum(above, size - 1)], size - 1)
            low, high = np.maximum(low, row), np.minimum(np.where(high < 0, size - 1, high), ends)
            widths = high - low + 1
            starts = np.concatenate([[0], np.cumsum(widths)[:-1]])
            tried = np.arange(widths.sum()) - np.repeat(starts - low, widths)
            errors = before[tried - 1] + _costs(values, tried, np.repeat(ends + 1, widths))
            best[ends] = np.minimum.reduceat(errors, starts)
            hits = errors == np.repeat(best[ends], widths)
            first = np.minimum.reduceat(np.where(hits, tried, size), starts)
            begins[ends] = known[ends] = first
        step //= 2
    return best, begins
