"""Pareto fronts of points (compression, loss of accuracy), the area below them, and the best ratio at a loss."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["area_at_equal_numbers", "area_under_front", "best_ratio", "front_of"]

Array = npt.NDArray[np.float64]

_SUBSETS = 200


def area_under_front(points: npt.ArrayLike, reference: float) -> Array:
    """The mean, over losses of accuracy from 0 to ``reference``, of the best log-ratio at that loss or less.

    ``points`` (..., n, 2): the logarithm of the compression ratio and the loss of accuracy against the original. A gain
    counts as a loss of 0, a ratio below 1 as 1, and the original itself is a point of every front. The result (...) is
    the hypervolume between the front and the point (ratio 1, loss ``reference``), divided by ``reference``: a
    difference of two of them is the logarithm of the factor by which one compresses further, on average over losses.

    >>> area_under_front([[1.0, 0.0], [3.0, 0.05], [9.0, 0.2]], reference=0.1).item()
    2.0
    """
    given = np.asarray(points, dtype=float)
    loss = np.maximum(given[..., 1], 0)
    ratio = np.maximum(given[..., 0], 0)
    order = np.argsort(loss, axis=-1, kind="stable")
    loss = np.minimum(np.take_along_axis(loss, order, -1), reference)  # beyond it nothing has a width
    best = np.maximum.accumulate(np.take_along_axis(ratio, order, -1), axis=-1)
    ends = np.concatenate([loss[..., 1:], np.full((*loss.shape[:-1], 1), reference)], axis=-1)
    area: Array = ((ends - loss) * best).sum(-1) / reference
    return area


def area_at_equal_numbers(points: Array, number: int, reference: float) -> float:
    """The area under the front of ``number`` of the points (n, 2): the mean over 200 random choices of as many.

    A front of more points is never worse, so fronts are compared at equal numbers.
    """
    if number >= len(points):
        return float(area_under_front(points, reference))
    rng = np.random.default_rng(0)
    chosen = np.stack([rng.permutation(len(points))[:number] for _ in range(_SUBSETS)])
    return float(area_under_front(points[chosen], reference).mean())


def best_ratio(points: Array, loss: float) -> float:
    """The largest log-ratio among points (n, 2) that lose at most ``loss``; 0, which is no compression, if none is."""
    allowed: Any = points[points[:, 1] <= loss + 1e-12, 0]
    return float(max(allowed.max(initial=0.0), 0.0))


def front_of(points: Array) -> list[int]:
    """The indices of the points (n, 2) that no other one beats in ratio and loss, from small loss to large.

    >>> front_of(np.array([[1.0, 0.0], [0.5, 0.1], [3.0, 0.2]]))
    [0, 2]
    """
    best, found = -np.inf, []
    for index in np.lexsort((-points[:, 0], points[:, 1])):
        if points[index, 0] > best:
            best = points[index, 0]
            found.append(int(index))
    return found
