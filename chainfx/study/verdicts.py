"""The verdict on each comparison of a study: fronts of each seed, the difference of their areas, and a test."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from chainfx.study.design import Design
from chainfx.study.fronts import area_at_equal_numbers, area_under_front, best_ratio
from chainfx.study.measuring import MEASURED
from chainfx.study.orders import Comparison
from chainfx.study.records import CaseRecord
from chainfx.study.statistics import Decision, decide
from chainfx.study.tuning import Training

__all__ = ["Verdict", "arms_of", "informed", "paired", "verdicts_on"]

Part = Literal["accuracy", "test"]
Array = npt.NDArray[np.float64]
Found = Mapping[str, CaseRecord]
"""The records of one seed by the hash of their case; all of one origin."""

_RESAMPLES = 1000
_OTHERS: tuple[tuple[str, Part, str], ...] = (("strict", "accuracy", "strict"), ("storage", "accuracy", "storage"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a study says of one comparison under one training.

    ``first`` and ``second``: the arms. ``seeds``: how many were compared; ``configurations``: how many an arm has;
    ``failed``: pairs of cases left out because one of them failed. ``decision``: the test on the differences of
    the areas under the fronts (:func:`~chainfx.study.area_under_front`), in decades of compression. ``factor``: how
    many times further ``first`` compresses than ``second``, on average over losses of accuracy and seeds, and
    ``interval``: the same for 95 % of resamples of seeds and configurations, fronts made anew for each. ``tiers``: by
    loss of accuracy, the median over seeds of the best ratio of each arm. ``also``: the factor with other costs or
    other data in place of the primary ones; descriptive. ``empty``: no seed has a point of either arm that counts, all
    lose more than the reference or compress nothing, so that nothing can be decided.
    """

    first: str
    second: str
    training: Training
    primary: bool
    seeds: tuple[int, ...]
    configurations: int
    failed: int
    decision: Decision
    factor: float
    interval: tuple[float, float]
    tiers: Mapping[float, tuple[float, float]] = field(hash=False)
    also: Mapping[str, float] = field(hash=False)
    empty: bool = False

    @property
    def better(self) -> str | None:
        """The arm that compresses further, ``None`` if they are equivalent or nothing is decided."""
        return {"first": self.first, "second": self.second}.get(self.decision.outcome)


@dataclass(frozen=True)
class _Arms:
    """The points of both arms of a comparison: for each seed, for each configuration (points, 2)."""

    seeds: tuple[int, ...]
    first: tuple[tuple[Array, ...], ...]
    second: tuple[tuple[Array, ...], ...]
    failed: int


def verdicts_on(design: Design, found: Mapping[int, Found]) -> tuple[Verdict, ...]:
    """The verdicts of a design on the records of its seeds; the primary ones of each training are one family.

    ``found``: for each seed the records that can be compared, by the hash of their case. Seeds that have not all
    cases of a comparison do not count for it.
    """
    verdicts = []
    for training in design.trainings:
        compared = [each for each in design.comparisons if training in design.trains(each.second)]
        primary = [each for each in compared if each.primary]
        for family in (primary, *([each] for each in compared if not each.primary)):
            verdicts += _family(design, found, training, family)
    return tuple(verdicts)


def _family(
    design: Design, found: Mapping[int, Found], training: Training, family: Sequence[Comparison]
) -> list[Verdict]:
    arms = [arms_of(design, found, training, each, "accuracy", design.cost) for each in family]
    differences = [informed(each, paired(each.first, each.second, design.reference), design) for each in arms]
    decisions = decide(differences, math.log10(1 + design.margin), design.alpha, design.test)
    return [_verdict(design, found, training, *each) for each in zip(family, arms, differences, decisions, strict=True)]


def _verdict(
    design: Design,
    found: Mapping[int, Found],
    training: Training,
    comparison: Comparison,
    arms: _Arms,
    differences: Array,
    decision: Decision,
) -> Verdict:
    also = {}
    measured: list[tuple[str, Part, str]] = [(name, "accuracy", name) for name in MEASURED if _has(found, name)]
    for name, part, cost in (*_OTHERS, *measured, ("test set", "test", design.cost)):
        there = arms_of(design, found, training, comparison, part, cost)
        also[name] = _factor(paired(there.first, there.second, design.reference))
    return Verdict(
        first=str(comparison.first),
        second=str(comparison.second),
        training=training,
        primary=comparison.primary,
        seeds=arms.seeds,
        configurations=len(design.configurations(comparison.first)),
        failed=arms.failed,
        decision=decision,
        factor=_factor(differences),
        empty=bool(arms.seeds) and not len(differences),
        interval=_interval(arms, design.reference),
        tiers={tier: (_best(arms.first, tier), _best(arms.second, tier)) for tier in design.tiers},
        also=also,
    )


def _has(found: Mapping[int, Found], name: str) -> bool:
    """Whether all originals carry what is measured by that name; records of former versions carry less."""
    return bool(found) and all(name in _original(each).points[0].measured for each in found.values())


def informed(arms: _Arms, differences: Array, design: Design) -> Array:
    """The differences, none if no seed has a point of either arm that counts: two empty fronts are not equivalent."""
    some = [area_under_front(np.concatenate(each), design.reference) > 0 for each in (*arms.first, *arms.second)]
    return differences if any(some) else differences[:0]


def paired(first: Sequence[Sequence[Array]], second: Sequence[Sequence[Array]], reference: float) -> Array:
    """For each seed, the area under the front of the first arm minus that of the second, at equal numbers of points.

    ``first`` and ``second``: for each seed, for each configuration, points (n, 2).
    """
    differences = []
    for one, other in zip(first, second, strict=True):
        mine, theirs = np.concatenate(one), np.concatenate(other)
        number = min(len(mine), len(theirs))
        areas = [area_at_equal_numbers(points, number, reference) for points in (mine, theirs)]
        differences.append(areas[0] - areas[1])
    return np.asarray(differences)


def arms_of(
    design: Design, found: Mapping[int, Found], training: Training, comparison: Comparison, part: Part, cost: str
) -> _Arms:
    """The points of both arms for every seed that has all of them; a configuration that failed is left out of both."""
    seeds, points, failed = [], [], 0
    for seed, records in found.items():
        cases = [design.cases_of(arm, seed, training) for arm in (comparison.first, comparison.second)]
        if not all(case.hash in records for of_arm in cases for case in of_arm):
            continue
        both = [[_points(records[case.hash], _original(records), part, cost) for case in of_arm] for of_arm in cases]
        usable = [[each for each in of_arm if each is not None] for of_arm in both]
        if comparison.first.letters == comparison.second.letters:
            usable = _whole_pairs(*both)
            failed += len(both[0]) - len(usable[0])
        if all(usable):
            seeds.append(seed)
            points.append([tuple(of_arm) for of_arm in usable])
    return _Arms(tuple(seeds), tuple(each[0] for each in points), tuple(each[1] for each in points), failed)


def _whole_pairs(first: Sequence[Array | None], second: Sequence[Array | None]) -> list[list[Array]]:
    """The configurations of both arms that failed in neither."""
    pairs = [(one, other) for one, other in zip(first, second, strict=True) if one is not None and other is not None]
    return [[one for one, _ in pairs], [other for _, other in pairs]]


def _original(records: Found) -> CaseRecord:
    """The record of the uncompressed network of a seed."""
    return next(each for each in records.values() if not each.passes)


def _points(record: CaseRecord, original: CaseRecord, part: Part, cost: str) -> Array | None:
    """The points (n, 2) of a case: decades of compression and loss of accuracy; ``None`` if it failed."""
    if record.failed is not None:
        return None
    (origin,) = original.points
    rows = []
    for point in record.points:
        ratio = original.cost(origin, cost) / record.cost(point, cost)
        rows.append((math.log10(ratio), getattr(origin, part) - getattr(point, part)))
    return np.asarray(rows)


def _factor(differences: Array) -> float:
    return float(10 ** differences.mean()) if len(differences) else 1.0


def _best(seeds: Sequence[Sequence[Array]], loss: float) -> float:
    """The median over seeds of the best ratio at a loss of accuracy."""
    ratios = [best_ratio(np.concatenate(each), loss) for each in seeds]
    return float(10 ** np.median(ratios)) if ratios else 1.0


def _interval(arms: _Arms, reference: float) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of the factor over resamples of seeds and of configurations, as in both arms."""
    if len(arms.seeds) < 2:
        return 0.0, math.inf
    pairs = zip(arms.first, arms.second, strict=True)
    differences = np.stack([_resampled(*pair, reference) for pair in pairs])  # (seeds, resamples)
    chosen = np.random.default_rng(0).integers(len(arms.seeds), size=differences.shape)
    low, high = np.quantile(np.take_along_axis(differences, chosen, axis=0).mean(axis=0), [0.025, 0.975])
    return float(10**low), float(10**high)


def _resampled(first: Sequence[Array], second: Sequence[Array], reference: float) -> Array:
    """The difference of the areas of one seed in each resample of its configurations, at equal numbers of points."""
    number = min(sum(map(len, first)), sum(map(len, second)))
    areas = [_resampled_areas(arm, number, reference) for arm in (first, second)]
    return areas[0] - areas[1]


def _resampled_areas(configurations: Sequence[Array], number: int, reference: float) -> Array:
    """The area under the front of each resample of configurations, at most ``number`` points of each; (resamples,).

    The same configurations are chosen for every seed and in both arms. One with fewer points than others is filled up
    with the original, which is on every front anyway.
    """
    rng = np.random.default_rng(1)
    most = max(map(len, configurations))
    padded = np.stack([np.pad(each, ((0, most - len(each)), (0, 0))) for each in configurations])
    points = padded[rng.integers(len(padded), size=(_RESAMPLES, len(padded)))].reshape(_RESAMPLES, -1, 2)
    if points.shape[1] > number:
        index = rng.permuted(np.broadcast_to(np.arange(points.shape[1]), points.shape[:2]), axis=1)[:, :number]
        points = np.take_along_axis(points, index[..., None], axis=1)
    return area_under_front(points, reference)
