"""What bears on claims that compare networks or data sets: studies that differ in one of them alone."""

import math
from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np

from chainfx.study.analysis import StudyResult
from chainfx.study.claim_tests import (
    ClaimTest,
    Results,
    Says,
    is_in_order,
    is_plain,
    original_of,
    pair_verdicts,
    setting_of,
    studies_of,
    where_of,
)
from chainfx.study.design import Endpoint
from chainfx.study.fronts import area_under_front
from chainfx.study.orders import Arm
from chainfx.study.statistics import LEAST_SEEDS
from chainfx.study.tuning import Training
from chainfx.study.verdicts import Verdict

__all__ = ["easier_tasks", "stability", "stable_under_latency"]

_OF_DATA = ("in_channels", "num_classes")

_LATENCIES: tuple[Endpoint, ...] = ("latency-1", "latency-64")


def stability(field: int) -> Callable[[Results, Training], Iterator[ClaimTest]]:
    """Pairs that two studies decided which differ in network (0) or in data (1) alone."""

    def tested(results: Results, training: Training) -> Iterator[ClaimTest]:
        for (one, mine), (other, theirs) in combinations(list(pair_verdicts(results, training)), 2):
            pair = _letters(one, mine)
            same = [here == there for here, there in zip(setting_of(one), setting_of(other), strict=True)]
            if pair != _letters(other, theirs) or same[field] or not same[1 - field]:
                continue
            outcomes = [_direction(one, mine), _direction(other, theirs)]
            says: Says = "nothing" if None in outcomes else "for" if outcomes[0] == outcomes[1] else "against"
            yield ClaimTest(
                f"{mine.first} / {mine.second}",
                f"{where_of(one)}; {where_of(other)}",
                says,
                f"{mine.factor:.2f} and {theirs.factor:.2f} times further",
                min(mine.decision.confidence, theirs.decision.confidence),
                min(len(mine.seeds), len(theirs.seeds)),
            )

    return tested


def _letters(result: StudyResult, verdict: Verdict) -> frozenset[str]:
    """The passes of a pair by name."""
    return frozenset(result.design.passes[letter][0].info.name for letter in _arm(result, verdict.first).steps)


def _arm(result: StudyResult, name: str) -> Arm:
    return next(arm for arm in result.design.arms if str(arm) == name)


def _direction(result: StudyResult, verdict: Verdict) -> str | None:
    """The name of the pass that goes first, ``"equivalent"``, or ``None`` if that is undecided."""
    if verdict.better is None:
        return "equivalent" if verdict.decision.outcome == "equivalent" else None
    return result.design.passes[_arm(result, verdict.better).steps[0]][0].info.name


def stable_under_latency(results: Results, training: Training) -> Iterator[ClaimTest]:
    """Pairs that bit operations decide, judged by the measured time of a batch of 1 and of 64 samples instead.

    They may be decided by another study of the same network and data. The same pass first speaks for the claim, the
    other one or equivalence against it.
    """
    counted = {
        (*setting_of(result), each.first, each.second): each
        for result, each in pair_verdicts([each.judged_by("bitops") for each in results], training)
    }
    for result in (each for each in results if each.design.measured):
        for endpoint in _LATENCIES:
            for _, timed in pair_verdicts([result.judged_by(endpoint)], training):
                by_bits = counted.get((*setting_of(result), timed.first, timed.second))
                if by_bits is None or by_bits.better is None:
                    continue
                undecided = timed.decision.outcome == "undecided"
                says: Says = "nothing" if undecided else "for" if timed.better == by_bits.better else "against"
                yield ClaimTest(
                    f"{by_bits.better} is better by BitOps; by the time of {endpoint.removeprefix('latency-')} samples "
                    f"{timed.first} against {timed.second}",
                    where_of(result),
                    says,
                    f"{timed.factor:.2f} times further",
                    timed.decision.confidence,
                    len(timed.seeds),
                )


def easier_tasks(results: Results, training: Training) -> Iterator[ClaimTest]:
    """The same passes in the same order on two data sets: does the one with the better originals compress further?

    They have the same options, too: a study with more of them has more points to choose from.
    """
    from scipy.stats import ttest_ind

    studies = list(studies_of(results, training))
    for one, other in combinations(studies, 2):
        if _architecture(one) != _architecture(other) or setting_of(one)[1] == setting_of(other)[1]:
            continue
        accuracies = [_originals(each) for each in (one, other)]
        easy, hard = (one, other) if np.mean(accuracies[0]) > np.mean(accuracies[1]) else (other, one)
        arms = [
            arm
            for arm in easy.design.arms
            if is_plain(arm) and arm in hard.design.arms and _options(easy, arm) == _options(hard, arm)
        ]
        chain = max(arms, key=lambda arm: (len(arm.steps), is_in_order(easy, arm)), default=None)
        if chain is None:
            continue
        areas = [_areas(each, training, chain) for each in (easy, hard)]
        few = min(map(len, [*areas, *accuracies]))
        if few < 2:
            continue
        p = float(np.nan_to_num(ttest_ind(*areas, equal_var=False).pvalue, nan=1.0))  # no point of any seed counts
        sure = few >= LEAST_SEEDS and max(p, float(ttest_ind(*accuracies, equal_var=False).pvalue)) < one.design.alpha
        gain = float(np.mean(areas[0]) - np.mean(areas[1]))
        says: Says = "nothing" if not sure else "for" if gain > 0 else "against"
        yield ClaimTest(
            f"{chain} on {easy.design.data_name} against {hard.design.data_name}",
            str(easy.design.network.get("name")),
            says,
            f"{10**gain:.2f} times further",
            1 - p,
            few,
        )


def _architecture(result: StudyResult) -> tuple[object, dict[str, object]]:
    """The network of a study but for what its data decide: how many channels come in and how many classes there are."""
    options = {name: value for name, value in result.design.network.get("options", {}).items() if name not in _OF_DATA}
    return result.design.network.get("name"), options


def _options(result: StudyResult, arm: Arm) -> list[list[str]]:
    """The passes of every configuration of an arm, with their options."""
    design = result.design
    return [[one.label for one in design.chain(arm, each)] for each in design.configurations(arm)]


def _originals(result: StudyResult) -> list[float]:
    return [original_of(records).points[0].accuracy for records in result.records.values()]


def _areas(result: StudyResult, training: Training, arm: Arm) -> list[float]:
    """The area under the front of an arm, one a seed."""
    found: dict[int, list[tuple[float, float]]] = {}
    for point in result.points(arm, training):
        found.setdefault(point.seed, []).append((math.log10(point.ratio), point.loss))
    return [float(area_under_front(np.array(points), result.design.reference)) for points in found.values()]
