"""Which order will be better, from each pass alone: a prediction learnt from studies, beside rules that others give.

A pair of passes is described by how the two differ alone: how far each compresses within the reference loss, how much
accuracy its strengths lose, the area under its front, and what it declares (static or dynamic, what it decides about).
What is predicted is the difference that a study measures, in decades, of one order less the other. It is linear in the
description, without a constant, so that swapping the passes turns its sign; the weights have a normal prior around 0
(Bayesian linear regression, Bishop 2006, sec. 3.3), so that little experience gives little confidence.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chainfx.errors import StudyError
from chainfx.passes import Pass
from chainfx.rendering import rendered
from chainfx.scheduler import LAW
from chainfx.study.analysis import StudyResult
from chainfx.study.fronts import area_under_front, best_ratio
from chainfx.study.order_law import law_of
from chainfx.study.orders import Arm
from chainfx.study.tuning import Training

__all__ = ["RULES", "Observation", "PairPrediction", "Prediction", "observations_of", "observed", "predict", "validate"]

Array = npt.NDArray[np.float64]

_PRIOR = 0.1
"""Standard deviation of a weight before anything is learnt, in decades per unit of its feature."""
_NOISE = 0.1
"""What the description leaves open, in decades; the standard error of an observation is added to it."""
_FAMILIES = ("distillation", "pruning", "quantization", "exits")
_SURE = 0.9


@dataclass(frozen=True, slots=True)
class _Alone:
    """A pass alone: decades of compression within the reference loss, mean loss over its strengths, and area."""

    one: Pass
    best: float
    loss: float
    area: float


@dataclass(frozen=True, slots=True)
class Observation:
    """What a study found of a pair: the passes by name, how they differ alone, and by how much the first order wins.

    ``network`` and ``data`` identify them. ``features``: those of the first pass less those of the second.
    ``difference``: in decades, above 0 if ``first`` before ``second`` compresses further, with its standard ``error``.
    ``rules``: the pass that each rule of :data:`RULES` puts first, ``None`` where it says nothing.
    """

    network: str
    data: str
    training: Training
    first: str
    second: str
    features: tuple[float, ...]
    difference: float
    error: float
    rules: Mapping[str, str | None] = dataclasses.field(hash=False)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Observation":
        """The observation that ``dataclasses.asdict`` wrote."""
        return cls(**{**plain, "features": tuple(plain["features"])})


@dataclass(frozen=True, slots=True)
class PairPrediction:
    """Which of two passes goes first: ``before`` ``after``, with a ``confidence`` from 0.5 to 1.

    ``factor``: how many times further that order is expected to compress. ``rules``: what each rule puts first.
    """

    before: str
    after: str
    confidence: float
    factor: float
    rules: Mapping[str, str | None] = dataclasses.field(hash=False)

    @property
    def worth_measuring(self) -> bool:
        """Whether a study is worth its time: the prediction is not sure, or a rule says otherwise."""
        return self.confidence < _SURE or any(each not in (None, self.before) for each in self.rules.values())


@dataclass(frozen=True, slots=True)
class Prediction:
    """The order that is predicted from each pass alone, pair by pair.

    ``pairs``: of observations that it was learnt from, of so many ``networks``. ``scores``: of the prediction and every
    rule, how many pairs of a network that was left out it got right, and of how many; empty with fewer than two
    networks, of which none can be left out.
    """

    order: tuple[str, ...]
    predictions: tuple[PairPrediction, ...]
    pairs: int
    networks: int
    scores: Mapping[str, tuple[int, int]] = dataclasses.field(hash=False)

    def to_dict(self) -> dict[str, Any]:
        """The prediction as plain JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return rendered(self, "text")


def _law(one: _Alone, other: _Alone) -> float:
    return float(bool(LAW.reason(one.one.info, other.one.info))) - float(bool(LAW.reason(other.one.info, one.one.info)))


def _paper(one: _Alone, other: _Alone) -> float:
    families = [each.one.info.family for each in (one, other)]
    if not set(families) <= set(_FAMILIES):
        return 0.0
    return float(_FAMILIES.index(families[1]) - _FAMILIES.index(families[0]))


RULES: Mapping[str, Callable[[_Alone, _Alone], float]] = {
    "property law": _law,
    "weakest first": lambda one, other: other.loss - one.loss,
    "larger ratio first": lambda one, other: one.best - other.best,
    "always D-P-Q-E": _paper,
}
"""Rules that rival the prediction: above 0 if the first pass goes first, below 0 if the second, 0 for nothing."""


def _alone(result: StudyResult, training: Training) -> dict[str, _Alone]:
    """Each pass alone, by its letter; one of which all cases failed is left out."""
    found = {}
    for letter, grid in result.design.passes.items():
        by_seed: dict[int, list[tuple[float, float]]] = {}
        for point in result.points(Arm((letter,)), training):
            by_seed.setdefault(point.seed, []).append((math.log10(point.ratio), point.loss))
        fronts = [np.array(points) for points in by_seed.values()]
        if fronts:
            reference = result.design.reference
            best = float(np.mean([best_ratio(each, reference) for each in fronts]))
            loss = float(np.mean([each[:, 1].mean() for each in fronts]))
            area = float(np.mean([area_under_front(each, reference) for each in fronts]))
            found[letter] = _Alone(grid[0], best, loss / reference, area)
    return found


def _features(one: _Alone, other: _Alone) -> tuple[float, ...]:
    first, second = one.one.info, other.one.info
    return (
        one.best - other.best,
        one.loss - other.loss,
        one.area - other.area,
        float(first.kind - second.kind),
        (first.granularity - second.granularity) / 4,
    )


def _said(one: _Alone, other: _Alone) -> dict[str, str | None]:
    signs = {name: rule(one, other) for name, rule in RULES.items()}
    names = one.one.info.name, other.one.info.name
    return {name: names[0] if sign > 0 else names[1] if sign < 0 else None for name, sign in signs.items()}


def observations_of(result: StudyResult) -> tuple[Observation, ...]:
    """What a study found of its pairs, under each training, decided or not; nothing of pairs that all lose too much."""
    found = []
    steps = {str(arm): arm.steps for arm in result.design.arms if arm.student == "derived" and not arm.salt}
    for training in result.design.trainings:
        alone = _alone(result, training)
        for verdict in result.verdicts:
            pair, back = (steps.get(name, ()) for name in (verdict.first, verdict.second))
            if verdict.training != training or len(pair) != 2 or pair != back[::-1]:
                continue
            usable = verdict.primary and not verdict.empty and len(verdict.seeds) >= 2
            if not usable or not set(pair) <= alone.keys():
                continue
            one, other = (alone[letter] for letter in pair)
            found.append(
                Observation(
                    *_identity(result),
                    training,
                    one.one.info.name,
                    other.one.info.name,
                    _features(one, other),
                    verdict.decision.difference,
                    _error(verdict.decision.difference, verdict.decision.p, len(verdict.seeds)),
                    _said(one, other),
                )
            )
    return tuple(found)


def _identity(result: StudyResult) -> tuple[str, str]:
    """Network and data: by their ground, or where a store of a former version has none, as the design names them."""
    design = result.design
    named = [json.dumps(dict(each), sort_keys=True, default=list) for each in (design.network, design.data)]
    return result.ground.network or named[0], result.ground.data or named[1]


def _error(difference: float, p: float, seeds: int) -> float:
    """The standard error of a mean, from its p-value by the t-test."""
    from scipy.special import stdtrit

    distance = abs(float(stdtrit(seeds - 1, p / 2))) if 0 < p < 1 else 0.0
    return abs(difference) / distance if distance else 0.0


@cache
def observed() -> tuple[Observation, ...]:
    """What the studies found that chainfx ships with (``docs/results``)."""
    plain = json.loads(Path(__file__).with_name("observed.json").read_text(encoding="utf-8"))
    return tuple(Observation.from_dict(each) for each in plain)


def _fitted(known: Sequence[Observation]) -> tuple[Array, Array]:
    """Mean and covariance of the weights after some observations."""
    size = len(_FEATURES)
    features = np.array([each.features for each in known]).reshape(-1, size)
    precisions = np.array([1 / (_NOISE**2 + each.error**2) for each in known])
    covariance = np.linalg.inv(np.eye(size) / _PRIOR**2 + (features.T * precisions) @ features)
    mean = covariance @ (features.T * precisions) @ np.array([each.difference for each in known])
    return mean, covariance


_FEATURES = ("decades of compression", "mean loss", "area", "dynamic", "granularity")


def _predicted(features: Sequence[float], known: Sequence[Observation]) -> tuple[float, float]:
    """The difference that is expected, and its standard deviation."""
    mean, covariance = _fitted(known)
    given = np.asarray(features)
    return float(given @ mean), math.sqrt(float(given @ covariance @ given) + _NOISE**2)


def predict(result: StudyResult, known: Sequence[Observation] | None = None) -> Prediction:
    """The order of the passes of a study from each of them alone, under its first training.

    ``result``: of a study that has at least each pass alone, as ``orders="alone"`` runs; what it says of pairs is not
    looked at. ``known``: observations to learn from, those that ship unless given; those of the same network and data
    are left out. Raises :class:`~chainfx.errors.StudyError` if there are no points of two passes.
    """
    training = result.design.trainings[0]
    alone = _alone(result, training)
    if len(alone) < 2:
        raise StudyError("a prediction needs the points of two passes alone or more; run the design 'alone' first.")
    mine = _identity(result)
    learnt = [each for each in (observed() if known is None else known) if (each.network, each.data) != mine]
    made = tuple(_pair(one, other, learnt) for one, other in combinations(alone.values(), 2))
    edges = [(each.before, each.after, each.confidence, each.factor) for each in made]
    order = law_of([each.one for each in alone.values()], edges, [], [], "a prediction").order
    return Prediction(order, made, len(learnt), len({each.network for each in learnt}), validate(learnt))


def _pair(one: _Alone, other: _Alone, known: Sequence[Observation]) -> PairPrediction:
    from scipy.special import ndtr

    mean, spread = _predicted(_features(one, other), known)
    names = [each.one.info.name for each in (one, other)]
    before, after = names if mean >= 0 else names[::-1]
    return PairPrediction(before, after, float(ndtr(abs(mean) / spread)), 10 ** abs(mean), _said(one, other))


def validate(known: Sequence[Observation]) -> dict[str, tuple[int, int]]:
    """Of the prediction and of every rule, the pairs it gets right and of how many, one network left out at a time.

    A pair counts if its difference is at least twice its standard error; a rule that says nothing of it is wrong half
    of the time, so that pair does not count for it. Empty with fewer than two networks.
    """
    networks = dict.fromkeys(each.network for each in known)
    if len(networks) < 2:
        return {}
    scores = dict.fromkeys(("prediction", *RULES), (0, 0))
    for network in networks:
        others = [each for each in known if each.network != network]
        for each in known:
            if each.network != network or abs(each.difference) < 2 * each.error:
                continue
            mean, _ = _predicted(each.features, others)
            better = each.first if each.difference > 0 else each.second
            said = {"prediction": each.first if mean > 0 else each.second, **each.rules}
            for name in scores:
                if said[name] is not None:
                    scores[name] = scores[name][0] + (said[name] == better), scores[name][1] + 1
    return scores
