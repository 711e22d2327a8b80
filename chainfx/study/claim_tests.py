"""What bears on a claim in the records of studies: differences of which there is one a seed, or what is decided."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from chainfx.passes import Distill
from chainfx.study.analysis import StudyResult
from chainfx.study.design import Case
from chainfx.study.fronts import area_under_front, best_ratio
from chainfx.study.orders import MARKS, Arm, Comparison
from chainfx.study.records import CaseRecord
from chainfx.study.statistics import Outcome, decide, two_sided_p
from chainfx.study.tuning import Training
from chainfx.study.verdicts import Verdict, arms_of, informed, paired

__all__ = [
    "ClaimTest",
    "Results",
    "Sample",
    "Says",
    "combining",
    "distilling_first",
    "inserting",
    "is_in_order",
    "is_plain",
    "larger_ratio_first",
    "making_up",
    "original_of",
    "pair_verdicts",
    "reordering",
    "repeating",
    "setting_of",
    "studies_of",
    "weakest_first",
    "where_of",
]

Array = npt.NDArray[np.float64]
Says = Literal["for", "against", "nothing"]
Results = Sequence[StudyResult]
T = TypeVar("T")
_Best = dict[tuple[str, str, frozenset[str]], tuple[tuple[int, int], StudyResult, T]]
"""By network, data and two arms: seeds and configurations, the study, and what it says of them."""


@dataclass(frozen=True, slots=True)
class ClaimTest:
    """One test of a claim: what was compared, where, and whether that speaks for the claim, against it, or for nothing.

    ``size``: of what was found, in words. ``confidence``: 1 minus the p-value after correction. ``seeds``: how many
    were compared.
    """

    what: str
    where: str
    says: Says
    size: str
    confidence: float
    seeds: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Differences, one a seed, of which the first outcome, the second, and equivalence each say something."""

    what: str
    where: str
    differences: Array
    first: Says = "for"
    second: Says = "against"
    equal: Says = "against"

    def says(self, outcome: Outcome) -> Says:
        """What an outcome of the test on the differences says of the claim."""
        said: dict[Outcome, Says] = {"first": self.first, "second": self.second, "equivalent": self.equal}
        return said.get(outcome, "nothing")


def where_of(result: StudyResult) -> str:
    """Network and data of a study in words."""
    options = dict(result.design.network.get("options", {}))
    return f"{result.design.network.get('name')} {options} on {result.design.data_name}"


def setting_of(result: StudyResult) -> tuple[str, str]:
    """What makes two studies parts of one: network and data."""
    return _text(result.design.network), _text(result.design.data)


def _text(plain: Mapping[str, Any]) -> str:
    return json.dumps(plain, sort_keys=True, default=list)


def is_plain(arm: Arm) -> bool:
    """Whether an arm has each pass once, as the design has it, with the network's own student and the first salt."""
    marked = any(step[-1] in MARKS for step in arm.steps)
    return not marked and arm.student == "derived" and not arm.salt and len(arm.letters) == len(arm.steps)


def _difference(result: StudyResult, training: Training, first: Arm, second: Arm) -> Array:
    """For each seed that has both arms, by how many decades the first compresses further."""
    design = result.design
    arms = arms_of(design, result.records, training, Comparison(first, second), "accuracy", design.cost)
    return informed(arms, paired(arms.first, arms.second, design.reference), design)


def studies_of(results: Results, training: Training) -> Iterator[StudyResult]:
    """The studies that have records of a training."""
    return (each for each in results if training in each.design.trainings and each.records)


def _reordered(results: Results, training: Training) -> Iterator[tuple[StudyResult, Comparison]]:
    """Primary comparisons of the same passes in another order; of the same two arms those of :func:`_most`."""
    found: _Best[Comparison] = {}
    for result in studies_of(results, training):
        for each in result.design.comparisons:
            same = each.first.letters == each.second.letters and each.first.steps != each.second.steps
            if not (each.primary and same and is_plain(each.first) and is_plain(each.second)):
                continue
            seeds = len(_difference(result, training, each.first, each.second))
            _most(found, result, (str(each.first), str(each.second)), (seeds, _options(result, each)), each)
    return ((result, each) for _, result, each in found.values())


def _options(result: StudyResult, comparison: Comparison) -> int:
    return len(result.design.configurations(comparison.first))


def _most(found: "_Best[T]", result: StudyResult, arms: tuple[str, str], size: tuple[int, int], each: T) -> None:
    """Remember of studies of one network and data that compare the same two arms the one with most seeds.

    Of those with equally many it is the one with most configurations, else the first. ``size`` has both numbers.
    """
    key = (*setting_of(result), frozenset(arms))
    if key not in found or found[key][0] < size:
        found[key] = size, result, each


def combining(results: Results, training: Training) -> Iterator[Sample]:
    """The longest chain in the order of the design against each of its passes alone."""
    chains = [
        (each, arm) for each in studies_of(results, training) for arm in each.design.arms if is_in_order(each, arm)
    ]
    seen = set()
    for result, arm in chains:
        longest = max(len(other.steps) for one, other in chains if setting_of(one) == setting_of(result))
        key = (*setting_of(result), arm.steps)
        if len(arm.steps) == longest and key not in seen:
            seen.add(key)
            for letter in arm.steps:
                alone = Arm((letter,))
                yield Sample(f"{arm} against {alone}", where_of(result), _difference(result, training, arm, alone))


def is_in_order(result: StudyResult, arm: Arm) -> bool:
    """Whether an arm has several passes in the order of the design."""
    order = tuple(letter for letter in result.design.passes if letter in arm.steps)
    return is_plain(arm) and len(arm.steps) > 1 and arm.steps == order


def reordering(results: Results, training: Training) -> Iterator[Sample]:
    """Every comparison of an order with another one: a difference either way is one."""
    for result, each in _reordered(results, training):
        differences = _difference(result, training, each.first, each.second)
        yield Sample(str(each), where_of(result), differences, "for", "for", "against")


def inserting(results: Results, training: Training) -> Iterator[Sample]:
    """Pairs that were decided, with other passes between the two."""
    for result, each in _reordered(results, training):
        pair = _swapped(each.first, each.second)
        if pair is None:
            continue
        better = _decided(results, training, result, pair)
        says: tuple[Says, Says] = ("for", "against") if better == pair else ("against", "for")
        first, second = says if better is not None else ("nothing", "nothing")
        differences = _difference(result, training, each.first, each.second)
        words = "not decided as a pair" if better is None else f"as a pair {''.join(better)} is better"
        yield Sample(f"{each} ({words})", where_of(result), differences, first, second, "nothing")


def _swapped(first: Arm, second: Arm) -> tuple[str, str] | None:
    """The two letters in which arms differ, with at least one other between them."""
    differ = [place for place, pair in enumerate(zip(first.steps, second.steps, strict=True)) if pair[0] != pair[1]]
    if len(differ) != 2 or differ[1] - differ[0] < 2:
        return None
    return first.steps[differ[0]], first.steps[differ[1]]


def _decided(results: Results, training: Training, like: StudyResult, pair: tuple[str, str]) -> tuple[str, str] | None:
    """The better order of a pair of letters, where a study of the same network and data decided it."""
    orders = {str(Arm(each)): each for each in (pair, pair[::-1])}
    for result, verdict in pair_verdicts(results, training):
        if setting_of(result) == setting_of(like) and {verdict.first, verdict.second} == orders.keys():
            return orders[verdict.better] if verdict.better else None
    return None


def pair_verdicts(results: Results, training: Training) -> Iterator[tuple[StudyResult, Verdict]]:
    """The primary verdicts on pairs; of the same pair those of :func:`_most`."""
    found: _Best[Verdict] = {}
    for result in studies_of(results, training):
        names = {
            (str(each.first), str(each.second))
            for each in result.design.comparisons
            if len(each.first.steps) == 2 and each.first.steps == each.second.steps[::-1] and is_plain(each.first)
        }
        for verdict in result.verdicts:
            if verdict.training == training and verdict.primary and (verdict.first, verdict.second) in names:
                size = len(verdict.seeds), verdict.configurations
                _most(found, result, (verdict.first, verdict.second), size, verdict)
    return ((result, verdict) for _, result, verdict in found.values())


def larger_ratio_first(results: Results, training: Training) -> Iterator[Sample]:
    """Pairs in which one pass alone compresses further: a counterexample is one where it should not go first."""
    for result, each in _reordered(results, training):
        if len(each.first.steps) != 2:
            continue
        alone = [_best_alone(result, training, letter) for letter in each.first.steps]
        seeds = sorted(alone[0].keys() & alone[1].keys())
        apart = np.array([alone[0][seed] - alone[1][seed] for seed in seeds])
        if two_sided_p(apart) >= result.design.alpha:
            continue
        larger = each.first if apart.mean() > 0 else each.second
        other = each.second if apart.mean() > 0 else each.first
        differences = _difference(result, training, larger, other)
        what = f"{larger}, the larger ratio first, against {other}"
        yield Sample(what, where_of(result), differences, "against", "for", "for")


def _best_alone(result: StudyResult, training: Training, letter: str) -> dict[int, float]:
    """For each seed the best log-ratio of a pass alone within the reference loss."""
    found: dict[int, list[tuple[float, float]]] = {}
    for point in result.points(Arm((letter,)), training):
        found.setdefault(point.seed, []).append((math.log10(point.ratio), point.loss))
    return {seed: best_ratio(np.array(points), result.design.reference) for seed, points in found.items()}


def repeating(results: Results, training: Training) -> Iterator[Sample]:
    """A pass twice against a stronger one, and behind the whole chain against the chain."""
    for result in studies_of(results, training):
        for each in result.design.comparisons:
            if each.primary and len(each.first.letters) < len(each.first.steps):
                differences = _difference(result, training, each.first, each.second)
                yield Sample(str(each), where_of(result), differences, "against", "for", "for")


def distilling_first(results: Results, training: Training) -> Iterator[Sample]:
    """Chains that begin with distillation against the same ones with it at the end."""
    for result in studies_of(results, training):
        arms = {arm.steps for arm in result.design.arms if is_plain(arm) and len(arm.steps) > 1}
        letters = [letter for letter, grid in result.design.passes.items() if isinstance(grid[0], Distill)]
        for steps in sorted(arms):
            last = (*steps[1:], steps[0])
            if steps[0] in letters and last in arms:
                first, second = Arm(steps), Arm(last)
                differences = _difference(result, training, first, second)
                yield Sample(f"{first} against {second}", where_of(result), differences)


def weakest_first(results: Results, training: Training) -> Iterator[Sample]:
    """All pairs and strengths of a study: the step that alone loses less first, against last."""
    for result in studies_of(results, training):
        pairs = [each for one, each in _reordered([result], training) if len(each.first.steps) == 2]
        signed: dict[int, list[float]] = {}
        for each in pairs:
            for seed, difference in _weaker_first(result, training, each):
                signed.setdefault(seed, []).append(difference)
        if signed:
            differences = np.array([np.mean(values) for values in signed.values()])
            yield Sample(f"{len(pairs)} pairs, weaker step first against last", where_of(result), differences)


def _weaker_first(result: StudyResult, training: Training, pair: Comparison) -> Iterator[tuple[int, float]]:
    """For each seed and configuration, by how many decades the order with the weaker step first compresses further.

    How weak a step is: its mean loss over seeds, alone. Steps with exits have no one loss and are left out.
    """
    losses = _losses(result, training)
    for seed, records in result.records.items():
        cases = zip(*(result.design.cases_of(arm, seed, training) for arm in (pair.first, pair.second)), strict=True)
        for one, other in cases:
            alone = [each for each in (losses.get(one.steps[:1]), losses.get(other.steps[:1])) if each is not None]
            areas = [each for each in (_area(result, records, case) for case in (one, other)) if each is not None]
            if len(alone) == len(areas) == 2 and alone[0] != alone[1]:
                yield seed, (1 if alone[0] < alone[1] else -1) * (areas[0] - areas[1])


def _losses(result: StudyResult, training: Training) -> dict[tuple[str, ...], float]:
    """The mean loss over seeds of each case with one point, by its steps."""
    found: dict[tuple[str, ...], list[float]] = {}
    for records in result.records.values():
        for record in records.values():
            if record.training == training and len(record.points) == 1 and not record.salt:
                found.setdefault(record.steps, []).append(_loss(records, record))
    return {steps: float(np.mean(values)) for steps, values in found.items()}


def original_of(records: Mapping[str, CaseRecord]) -> CaseRecord:
    """The record of the uncompressed network among those of a seed."""
    return next(each for each in records.values() if not each.passes)


def _loss(records: Mapping[str, CaseRecord], record: CaseRecord) -> float:
    """The accuracy that a case lost, at its highest threshold."""
    return original_of(records).points[0].accuracy - record.points[-1].accuracy


def _area(result: StudyResult, records: Mapping[str, CaseRecord], case: Case) -> float | None:
    """The area under the one point of a case; ``None`` if it failed or has exits."""
    record = records.get(case.hash)
    if record is None or len(record.points) != 1:
        return None
    before, after = (each.cost(each.points[0], result.design.cost) for each in (original_of(records), record))
    return float(area_under_front([[math.log10(before / after), _loss(records, record)]], result.design.reference))


def making_up(results: Results, training: Training) -> Iterator[ClaimTest]:
    """Chains whose beginning lost accuracy: what the last stage gave back.

    Which beginnings lost is asked of the other seeds, else chance would choose them and a later stage seem to gain.
    """
    for result in studies_of(results, training):
        gains = [np.mean(values) for values in _gains(result, training).values() if values]
        if not gains:
            continue
        least = min(result.design.tiers, default=0.005) or 0.005
        (decision,) = decide([np.array(gains)], least, result.design.alpha, result.design.test)
        says: dict[Outcome, Says] = {"first": "for", "second": "against", "equivalent": "against"}
        yield ClaimTest(
            "accuracy after the last stage against before it, where stages before it lost some",
            where_of(result),
            says.get(decision.outcome, "nothing"),
            f"{decision.difference:+.2%} of accuracy",
            decision.confidence,
            len(gains),
        )


def _gains(result: StudyResult, training: Training) -> dict[int, list[float]]:
    """For each seed, the accuracy that the last stage of each chain gave back."""
    least = min(result.design.tiers, default=0.005) or 0.005
    lost: dict[tuple[str, ...], dict[int, float]] = {}
    for seed, records in result.records.items():
        for record in records.values():
            if record.training == training and record.points and record.passes and not (record.salt or record.given_up):
                lost.setdefault(record.steps, {})[seed] = _loss(records, record)
    found: dict[int, list[float]] = {seed: [] for seed in result.records}
    for steps, by_seed in lost.items():
        before = lost.get(steps[:-1], {})
        for seed, loss in by_seed.items():
            others = [value for other, value in before.items() if other != seed]
            if seed in before and others and np.mean(others) > least:
                found[seed].append(before[seed] - loss)
    return found
