"""The tests of a study: paired differences, one a seed, corrected for the number of comparisons.

Two nulls stand behind each comparison: that the difference is 0, and that it is as large as the margin or larger. They
are never both true. Holm's procedure therefore counts comparisons, not nulls, as Shaffer (1986) has it for nulls that
exclude each other, and the chance of any wrong verdict among all comparisons is at most ``alpha``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["LEAST_SEEDS", "Decision", "Outcome", "decide", "detectable", "equivalence_p", "least_p", "two_sided_p"]

Array = npt.NDArray[np.float64]
Test = Literal["t", "sign-flip"]
Outcome = Literal["first", "second", "equivalent", "undecided"]

LEAST_SEEDS = 8
"""With fewer seeds than this nothing is decided."""

_POWER = 0.8
_MOST_SEEDS = 1000
_EXACT = 16  # seeds up to which all signs are tried: 65,536 of them
_RANDOM_FLIPS = 20_000


@dataclass(frozen=True, slots=True)
class Decision:
    """What the seeds say about one comparison.

    ``difference``: the mean. ``p``: that of no difference; ``equivalence_p``: that of a difference as large as the
    margin. ``confidence``: 1 minus the smaller one after correction, at least 0. ``more_seeds``: how many more would
    decide it with a chance of 80 %, if the differences go on as they are; 0 when decided, ``None`` when not even 1,000.
    """

    outcome: Outcome
    difference: float
    p: float
    equivalence_p: float
    confidence: float
    more_seeds: int | None


def decide(
    differences: Sequence[npt.ArrayLike], margin: float, alpha: float = 0.05, test: Test = "t"
) -> list[Decision]:
    """The verdicts on a family of comparisons, each given by its differences (first minus second), one a seed.

    >>> near, far = [0.01, -0.01, 0.0, 0.01, -0.01, 0.0, 0.01, -0.01], [1.0, 1.2, 0.9, 1.1, 1.0, 0.8, 1.2, 1.0]
    >>> [each.outcome for each in decide([near, far, far[:7]], margin=0.1)]
    ['equivalent', 'first', 'undecided']
    """
    family = [np.asarray(each, dtype=float) for each in differences]
    nulls = [(float(two_sided_p(each, test)), float(equivalence_p(each, margin, test))) for each in family]
    corrected = _corrected(nulls)
    return [
        _decision(each, pair, mended, margin, alpha, len(family))
        for each, pair, mended in zip(family, nulls, corrected, strict=True)
    ]


def _corrected(nulls: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The p-values after correction: each times the number of comparisons of which a null may still be true."""
    order = sorted((p, index, which) for index, pair in enumerate(nulls) for which, p in enumerate(pair))
    corrected = [[1.0, 1.0] for _ in nulls]
    open_nulls, largest = [2] * len(nulls), 0.0
    for p, index, which in order:
        largest = max(largest, min(1.0, p * sum(left > 0 for left in open_nulls)))
        corrected[index][which] = largest
        open_nulls[index] -= 1
    return [(first, second) for first, second in corrected]


def _decision(
    seeds: Array, nulls: tuple[float, float], corrected: tuple[float, float], margin: float, alpha: float, count: int
) -> Decision:
    mean = float(seeds.mean()) if len(seeds) else 0.0
    enough = len(seeds) >= LEAST_SEEDS
    outcome: Outcome = "undecided"
    if enough and corrected[1] < alpha:
        outcome = "equivalent"
    elif enough and corrected[0] < alpha:
        outcome = "first" if mean > 0 else "second"
    more: int | None = 0
    if outcome == "undecided":
        needed = _seeds_needed(seeds, margin, alpha / count)
        more = None if needed is None else max(needed - len(seeds), 1)
    return Decision(outcome, mean, *nulls, max(0.0, 1 - min(corrected)), more)


def two_sided_p(seeds: Array, test: Test = "t") -> float:
    """The p-value of "the mean is 0" by Student's t-test or by flipping signs; 1 with fewer than two seeds.

    The smallest p that flipping the signs of n differences can give is 2 / 2**n.
    """
    if len(seeds) < 2:
        return 1.0
    if test == "t":
        return min(1.0, 2 * _t_tail(abs(float(seeds.mean())), seeds))
    return _flipped(seeds, two_sided=True)


def equivalence_p(seeds: Array, margin: float, test: Test = "t") -> float:
    """The p-value of "the mean is outside of ``-margin`` to ``margin``": the larger of two one-sided ones (TOST)."""
    if len(seeds) < 2:
        return 1.0
    if test == "t":
        return _t_tail(margin - abs(float(seeds.mean())), seeds)
    return max(_flipped(margin - seeds, two_sided=False), _flipped(margin + seeds, two_sided=False))


def _t_tail(distance: float, seeds: Array) -> float:
    """The chance of a mean that far above its true value, by the spread of the seeds."""
    from scipy.special import stdtr

    error = float(seeds.std(ddof=1)) / math.sqrt(len(seeds))
    if error == 0:
        return 0.0 if distance > 0 else 0.5 if distance == 0 else 1.0
    return float(stdtr(len(seeds) - 1, -distance / error))


def _flipped(seeds: Array, *, two_sided: bool) -> float:
    """The share of sign choices that give a mean as large; exact up to 16 seeds."""
    count = len(seeds)
    if count <= _EXACT:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (_RANDOM_FLIPS, count))
        signs[0] = 1  # the signs as they are count as one of the choices
    means, seen = signs @ seeds / count, float(seeds.mean())
    if two_sided:
        means, seen = np.abs(means), abs(seen)
    return float((means >= seen - 1e-12 * (1 + abs(seen))).mean())


def _seeds_needed(seeds: Array, margin: float, level: float) -> int | None:
    """How many seeds decide with a chance of 80 % at that level, by the t-test, for this mean and spread."""
    if len(seeds) < 2:
        return LEAST_SEEDS
    mean, spread = abs(float(seeds.mean())), float(seeds.std(ddof=1))
    if spread == 0:
        return LEAST_SEEDS
    effect = max(mean, margin - mean) / spread  # the nearer to being decided: a difference, or that there is none
    enough = np.flatnonzero(_detectable_sizes(level) <= effect)
    return LEAST_SEEDS + int(enough[0]) if len(enough) else None


@cache
def _detectable_sizes(level: float) -> Array:
    """:func:`detectable` for 8 to 1,000 seeds."""
    from scipy.special import stdtrit

    seeds = np.arange(LEAST_SEEDS, _MOST_SEEDS + 1)
    sizes: Array = (stdtrit(seeds - 1, 1 - level / 2) + stdtrit(seeds - 1, _POWER)) / np.sqrt(seeds)
    return sizes


def detectable(seeds: int, level: float) -> float:
    """The mean difference, in standard deviations of the differences, that is found in four of five studies.

    ``seeds``: from 8 to 1,000. By the approximation of the power of the t-test with quantiles of t, which is within a
    few percent at eight seeds.
    """
    return float(_detectable_sizes(level)[seeds - LEAST_SEEDS])


def least_p(seeds: int, comparisons: int, test: Test) -> float:
    """The smallest corrected p-value that as many seeds can give; 0 for the t-test, which has none."""
    return 0.0 if test == "t" else min(1.0, comparisons * 2 / 2**seeds)
