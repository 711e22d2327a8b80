"""Each claim gets the verdict that a synthetic study was made for: no network is trained here."""

import dataclasses
import functools
import json
import math

import numpy as np
import pytest
from scipy.stats import ttest_ind

from chainfx.passes import Distill, EarlyExit, PruneChannels, Quantize
from chainfx.scheduler import Ground
from chainfx.study import CLAIMS, CaseRecord, Claim, ClaimTest, Origin, Point, area_under_front, claims_on
from chainfx.study.analysis import _analysed
from tests.study.designs import tiny

PASSES = {
    "D": (Distill(width=0.7),),
    "P": (PruneChannels(0.25),),
    "Q": (Quantize(4, 4),),
    "E": (EarlyExit(exits=1, threshold=1.01, keep=True),),
}
ORIGIN = Origin("net", "x86_64 cpu", "0", "2")


def no_loss(steps):
    return 0.0


def study(orders, ratio, *, letters="PQ", loss=no_loss, accuracy=0.9, seeds=10, odd=None, grids=PASSES, **changes):
    """A study in which ``ratio`` and ``loss`` say what comes of steps such as ``"P Q"``, with noise of one percent.

    ``odd``: a seed and steps that lose a tenth more.
    """
    passes = {letter: grids[letter] for letter in letters}
    design = tiny(orders=orders, passes=passes, seeds=tuple(range(seeds)), tiers=(0.005,), **changes)
    rng = np.random.default_rng(0)
    records = []
    for case in design.all_cases():
        steps = " ".join(step.split(":")[0] for step in case.steps)
        made = ratio(steps) * (1 + 0.01 * rng.normal()) if case.passes else 1.0
        lost = loss(steps) + 0.0005 * rng.normal() if case.passes else 0.0
        lost += 0.1 * ((case.seed, steps) == odd)
        start = accuracy + 0.001 * (case.seed % 3)
        point = Point(None, start - lost, start - lost, {"mac_bw_ba": 1e6 / made, "strict": 1e6 / made})
        records.append(CaseRecord.of(case, ORIGIN, stage="s", points=(point,), storage_bits=8, seconds=1.0))
    return _analysed(design, records, Ground())


def favours(*orders, base=4.0):
    """Ratios in which chains compress 1.5 times further for each of the orders, such as ``"PQ"``, that they keep."""

    def ratio(steps):
        letters = steps.replace(" ", "")
        kept = [order for order in orders if 0 <= letters.find(order[0]) < letters.find(order[1])]
        return base ** len(letters) * 1.5 ** len(kept)

    return ratio


def by_table(table):
    return lambda steps: table[steps]


def inserted(*orders):
    return [
        study("pairwise", favours("PQ", "PE", "QE"), letters="PQE"),
        study("insertion", favours(*orders), letters="DPQE"),
    ]


def on_two(field, one, other):
    """Two studies of pairs that differ in network or data."""
    changed = {
        "network": {"name": "zoo.resnet", "options": {"blocks": [2]}},
        "data": {"source": "digits", "validation": 0.3},
    }
    return [study("pairwise", favours(one)), study("pairwise", favours(other), **{field: changed[field]})]


def tasks(easy, hard):
    other = {"source": "hard", "validation": 0.4}
    worlds = [{"": 1.0, "P": 2, "Q": 2, "P Q": ratio, "Q P": ratio} for ratio in (easy, hard)]
    return [
        study("pairwise", by_table(worlds[0]), accuracy=0.99),
        study("pairwise", by_table(worlds[1]), accuracy=0.8, data=other),
    ]


def alone(p, q):
    return lambda order: lambda steps: {"P": p, "Q": q}.get(steps) or favours(order)(steps)


WEAK_P = by_table({"P": 0.01, "Q": 0.03, "P Q": 0.03, "Q P": 0.03})
WORLDS = {
    "combining helps (the whole is more than its parts)": lambda: (
        [study("ablation", favours("PQ"))],
        [study("ablation", by_table({"P": 4, "Q": 4, "P Q": 3}))],
    ),
    "order matters": lambda: ([study("pairwise", favours("QP"))], [study("pairwise", favours())]),
    "insertion keeps the pair order": lambda: (inserted("PQ", "PE", "QE"), inserted("QP", "PE", "QE")),
    "larger-ratio-first is no rule": lambda: (
        [study("pairwise", alone(2, 8)("PQ"))],
        [study("pairwise", alone(2, 8)("QP"))],
    ),
    "repetition does not help": lambda: (
        [study("repetition", lambda steps: 2.0 ** len({step[0] for step in steps.split()}), letters="DPQE")],
        [study("repetition", lambda steps: 2.0 ** len(steps.split()), letters="DPQE")],
    ),
    "distillation first beats distillation last": lambda: (
        [study("pairwise", favours("DP", "DQ"), letters="DPQ")],
        [study("pairwise", favours("DP", "QD"), letters="DPQ")],
    ),
    "weakest step first": lambda: (
        [study("weakest-first", favours("PQ"), loss=WEAK_P)],
        [study("weakest-first", favours("QP"), loss=WEAK_P)],
    ),
    "later stages make up for an earlier loss": lambda: (
        [study("ablation", favours(), loss=by_table({"P": 0.03, "Q": 0.0, "P Q": 0.01}))],
        [study("ablation", favours(), loss=by_table({"P": 0.03, "Q": 0.0, "P Q": 0.05}))],
    ),
    "stable across networks": lambda: (on_two("network", "PQ", "PQ"), on_two("network", "PQ", "QP")),
    "stable across data sets": lambda: (on_two("data", "PQ", "PQ"), on_two("data", "PQ", "QP")),
    "easier tasks compress further": lambda: (tasks(8, 4), tasks(4, 8)),
}


@functools.cache
def world(name):
    """Studies in which a claim holds, and others in which it does not."""
    return WORLDS[name]()


def verdict(name, results):
    (found,) = (claim for claim in claims_on(results) if claim.name == name)
    return found


@pytest.mark.parametrize("name", WORLDS)
def test_a_claim_that_is_true_is_supported_and_one_that_is_not_contradicted(name):
    holds, fails = world(name)
    assert verdict(name, holds).outcome == "supported"
    assert verdict(name, fails).outcome == "contradicted"


def few(result):
    """The same study with seven of its seeds."""
    design = dataclasses.replace(result.design, seeds=result.design.seeds[:7])
    records = [record for seed in design.seeds for record in result.records[seed].values()]
    return _analysed(design, records, result.ground)


@pytest.mark.parametrize("name", WORLDS)
def test_seven_seeds_decide_no_claim(name):
    found = verdict(name, [few(each) for each in world(name)[0]])
    assert found.outcome == "undecided" and found.tests


def test_claims_that_no_record_bears_on_are_not_tested():
    outcomes = {claim.name: claim.outcome for claim in claims_on([study("alone", favours())])}
    assert outcomes.keys() == CLAIMS.keys() and set(outcomes.values()) == {"not tested"}


def test_tasks_are_compared_on_the_same_options_alone():
    more = {**PASSES, "P": (PruneChannels(0.25), PruneChannels(0.5))}
    ratio = by_table({"": 1.0, "P": 2, "Q": 2, "P Q": 8, "Q P": 8})
    easy = study("pairwise", ratio, accuracy=0.99, grids=more)
    found = verdict("easier tasks compress further", [easy, tasks(8, 4)[1]])
    assert [test.what for test in found.tests] == ["Q on digits against hard"]


def test_tasks_of_unequal_spread_are_compared_by_welch_s_test():
    def spread(size, seed):
        rng = np.random.default_rng(seed)
        return lambda steps: 4.0 * np.exp(size * rng.normal()) if steps else 1.0

    other = {"source": "hard", "validation": 0.4}
    easy = study("pairwise", spread(0.05, 1), accuracy=0.99, seeds=8)
    hard = study("pairwise", spread(0.8, 2), accuracy=0.8, seeds=24, data=other)
    (found,) = verdict("easier tasks compress further", [easy, hard]).tests
    (arm,) = (arm for arm in easy.design.arms if found.what.startswith(f"{arm} on"))

    def areas(result):
        points = {seed: [] for seed in result.seeds}
        for point in result.points(arm, "paper"):
            points[point.seed].append((math.log10(point.ratio), point.loss))
        return [area_under_front(np.array(each), result.design.reference) for each in points.values()]

    welch, pooled = (float(ttest_ind(areas(easy), areas(hard), equal_var=equal).pvalue) for equal in (False, True))
    assert abs(welch - pooled) > 0.01 and found.confidence == pytest.approx(1 - welch)


def test_an_insertion_of_a_pair_that_is_not_decided_says_nothing():
    unclear = [
        study("pairwise", favours(), letters="PQE"),
        study("insertion", favours("PQ", "PE", "QE"), letters="DPQE"),
    ]
    found = verdict("insertion keeps the pair order", unclear)
    assert {test.says for test in found.tests} == {"nothing"} and len(found.tests) == 3
    assert "(not decided as a pair)" in found.tests[0].what
    other = [dataclasses.replace(unclear[0], design=dataclasses.replace(unclear[0].design, data={"source": "x"}))]
    assert {test.says for test in verdict("insertion keeps the pair order", [*other, unclear[1]]).tests} == {"nothing"}


def test_the_same_comparison_in_two_studies_counts_once():
    one, more = (
        study("insertion", favours("PQ"), letters="DPQE", seeds=8),
        study("permutations", favours(), letters="DPQE"),
    )
    found = verdict("order matters", [one, more])
    seeds = {test.what: test.seeds for test in found.tests}
    assert len(found.tests) == len(seeds) == 7 and seeds["DPQE against DEQP"] == 10


def test_the_weaker_step_is_the_one_that_loses_less_alone():
    weak_q = by_table({"P": 0.03, "Q": 0.01, "P Q": 0.03, "Q P": 0.03})
    for order, expected in (("QP", "supported"), ("PQ", "contradicted")):
        found = [study("weakest-first", favours(order), loss=weak_q)]
        assert verdict("weakest step first", found).outcome == expected


def test_what_lost_is_asked_of_other_seeds():
    """No beginning loses but by chance: what the last stage gives back then is chance too, and is not counted."""
    noise = study("ablation", favours(), loss=lambda steps: 0.004)
    assert verdict("later stages make up for an earlier loss", [noise]).outcome == "not tested"
    (test,) = verdict("later stages make up for an earlier loss", [study("ablation", favours(), odd=(3, "P"))]).tests
    assert test.seeds == 9  # to the others the beginning lost 1.1 % on average, to the odd one it did not


def test_each_training_has_verdicts_of_its_own():
    both = study("pairwise", favours("PQ"), trainings=("paper", "equal"))
    assert [claim.training for claim in claims_on([both]) if claim.name == "order matters"] == ["paper", "equal"]


def test_rules():
    tests = {says: ClaimTest("a", "b", says, "c", 0.5, 8) for says in ("for", "against", "nothing")}

    def outcome(rule, *said):
        return Claim("x", "paper", rule, tuple(tests[says] for says in said)).outcome

    assert outcome("every", "for", "for") == "supported" and outcome("some", "against") == "contradicted"
    assert outcome("every", "for", "nothing") == outcome("some", "against", "nothing") == "undecided"
    assert outcome("every", "for", "nothing", "against") == "contradicted"
    assert outcome("some", "for", "nothing", "against") == "supported"


def test_a_claim_as_text_and_as_json():
    found = verdict("order matters", world("order matters")[0])
    assert str(found) == (
        "order matters: supported (1 for, 0 against, 0 undecided) "
        "of zoo.resnet {'blocks': [1], 'width': 4, 'in_channels': 1} on digits\n"
        f"  for: PQ against QP: 0.67 times further (confidence {found.tests[0].confidence:.3f}, 10 seeds)"
    )
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["outcome"] == "supported" and plain["tests"][0]["says"] == "for"
    assert str(verdict("repetition does not help", world("order matters")[0])) == "repetition does not help: not tested"


def test_of_many_tests_those_that_decide_are_printed():
    decided, undecided = (ClaimTest("a", "here", says, "c", 0.5, 8) for says in ("against", "nothing"))
    lines = str(Claim("x", "paper", "every", (undecided,) * 12 + (decided,))).splitlines()
    assert lines == [
        "x: contradicted (0 for, 1 against, 12 undecided) of here",
        "  against: a: c (confidence 0.500, 8 seeds)",
    ]
    assert len(str(Claim("x", "paper", "every", (undecided,) * 12)).splitlines()) == 13
