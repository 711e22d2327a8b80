"""At which strengths of two passes does the verdict on their order turn? One verdict for every pair of strengths."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chainfx.study.analysis import StudyResult
from chainfx.study.fronts import area_under_front
from chainfx.study.orders import Arm, Comparison
from chainfx.study.records import CaseRecord
from chainfx.study.statistics import Decision, decide
from chainfx.study.tuning import Training

__all__ = ["StrengthVerdict", "strengths_of"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StrengthVerdict:
    """The verdict on two passes with one option each: ``first`` before ``second`` against the other order.

    ``decision``: corrected for the number of pairs of strengths of the study; ``factor``: how many times further that
    order compresses, on average over losses of accuracy and seeds.
    """

    training: Training
    first: str
    second: str
    factor: float
    decision: Decision


def strengths_of(result: StudyResult, training: Training) -> tuple[StrengthVerdict, ...]:
    """A verdict for every pair of strengths of every pair of passes that a study has both ways."""
    found = [each for comparison in result.design.comparisons for each in _pairs(result, training, comparison)]
    design = result.design
    decisions = decide([each[2] for each in found], math.log10(1 + design.margin), design.alpha, design.test)
    return tuple(
        StrengthVerdict(training, first, second, float(10**decision.difference), decision)
        for (first, second, _), decision in zip(found, decisions, strict=True)
    )


def _pairs(result: StudyResult, training: Training, comparison: Comparison) -> Iterator[tuple[str, str, Array]]:
    """Two passes with an option each, by label, and the differences of their orders, one a seed.

    There are none if no seed has a point of either order that counts: two empty fronts are not equivalent.
    """
    first, second = comparison.first, comparison.second
    if not (comparison.primary and len(first.steps) == 2 and second == Arm(first.steps[::-1])):
        return
    for number, configuration in enumerate(result.design.configurations(first)):
        differences, counts = [], False
        for seed, records in result.records.items():
            cases = [result.design.cases_of(arm, seed, training)[number] for arm in (first, second)]
            found = (_area(result, seed, records.get(case.hash)) for case in cases)
            areas = [area for area in found if area is not None]
            if len(areas) == 2:
                differences.append(areas[0] - areas[1])
                counts = counts or any(areas)
        labels = [one.label for one in result.design.chain(first, configuration)]
        yield labels[0], labels[1], np.array(differences if counts else [])


def _area(result: StudyResult, seed: int, record: CaseRecord | None) -> float | None:
    """The area under the front of one case, whatever thresholds it has; ``None`` if it failed or is not there."""
    if record is None or record.failed is not None:
        return None
    cost, original = result.design.cost, next(each for each in result.records[seed].values() if not each.passes)
    (origin,) = original.points
    points = [
        (math.log10(original.cost(origin, cost) / record.cost(point, cost)), origin.accuracy - point.accuracy)
        for point in record.points
    ]
    return float(area_under_front(points, result.design.reference))
