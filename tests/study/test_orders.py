import pytest

from chainfx.errors import StudyError
from chainfx.passes import (
    Distill,
    EarlyExit,
    Fuse,
    PostTrainingQuantize,
    PruneChannels,
    PruneHeads,
    PruneWeights,
    Quantize,
)
from chainfx.study.orders import ORDERS, orders_of
from chainfx.study.strength import as_strong_as_two, milder

PASSES = {"D": Distill(width=0.5), "P": PruneChannels(0.5), "Q": Quantize(4, 4), "E": EarlyExit()}


def compared(name, passes=PASSES):
    return [f"{each.first}-{each.second}" for each in orders_of(name, passes).comparisons]


def test_pairwise_has_six_pairs_both_ways_each_pass_alone_and_two_readings_of_the_student():
    orders = orders_of("pairwise", PASSES)
    assert compared("pairwise")[:6] == ["DP-PD", "DQ-QD", "DE-ED", "PQ-QP", "PE-EP", "QE-EQ"]
    assert compared("pairwise")[6:] == ["DP-PD (fresh)", "DQ-QD (fresh)"]
    assert [each.primary for each in orders.comparisons] == [True] * 6 + [False] * 2
    assert [str(arm) for arm in orders.arms[:4]] == ["D", "P", "Q", "E"] and len(orders.arms) == 18


def test_control_compares_every_pair_with_itself_under_other_random_numbers():
    assert compared("control") == [f"{pair}-{pair} (again)" for pair in ("DP", "DQ", "DE", "PQ", "PE", "QE")]


def test_insertion_has_the_three_tests_of_the_paper_or_all_twelve():
    assert compared("insertion") == ["DQPE-DEPQ", "DPQE-DEQP", "DPEQ-DQEP"]
    every = compared("insertion-all")
    assert len(set(every)) == 12 and every[:2] == ["DQP-PQD", "DEP-PED"]


def test_the_other_experiments():
    assert compared("chain") == ["DPQE-DP", "DPQE-DQ", "DPQE-DE", "DPQE-PQ", "DPQE-PE", "DPQE-QE"]
    assert compared("permutations") == ["DPQE-DPEQ", "DPQE-DQPE", "DPQE-DQEP", "DPQE-DEPQ", "DPQE-DEQP"]
    assert len(compared("permutations-all")) == 23
    assert compared("ablation") == ["DP-D", "DPQ-DP", "DPQE-DPQ"]
    assert compared("repetition") == ["DD-D+", "PP-P+", "Q-Q-Q", "DPQED-DPQE", "DPQEP-DPQE", "DPQEQ-DPQE"]


def test_our_experiments():
    few = {letter: PASSES[letter] for letter in "DPQ"}
    assert compared("weakest-first", few) == compared("sensitivity", few) == ["DP-PD", "DQ-QD", "PQ-QP"]
    assert compared("alone") == [] and [str(arm) for arm in orders_of("alone", PASSES).arms] == list("DPQE")
    assert compared("recovery", few) == ["PQD~-PQ", "PQD~-D~PQ", "PQD~-DPQ", "DPQD~-DPQ"]
    assert compared("student", few) == ["D-D*", "DP-D*P", "DQ-D*Q", "D-D^", "DP-D^P", "DQ-D^Q"]
    assert compared("compatibility", SIX) == ["WT-TW", "DP-D", "QG-Q", "DP-PD", "DP-PD (fresh)"]
    with pytest.raises(StudyError) as caught:
        compared("recovery", {"P": PASSES["P"], "Q": PASSES["Q"]})
    assert str(caught.value) == ("these orders are about distill, which the design has under no letter; give it one.")


SIX = {
    **{letter: PASSES[letter] for letter in "DPQ"},
    "W": PruneWeights(0.5),
    "T": PostTrainingQuantize(4, 8),
    "G": Fuse(),
}


@pytest.mark.parametrize("name", ORDERS)
def test_arms_with_equal_letters_are_one_arm(name):
    arms = orders_of(name, {**PASSES, **SIX}).arms
    assert len(set(arms)) == len(arms)


def test_long_letters_are_told_apart():
    passes = {"prune": PruneChannels(0.5), "bits": Quantize(4, 4)}
    assert compared("pairwise", passes) == ["prune bits-bits prune"]


def test_stronger_and_milder_passes():
    assert as_strong_as_two(Distill(width=0.5)) == Distill(width=0.25)
    assert as_strong_as_two(Distill(depth=0.5)) == Distill(depth=0.25)
    assert milder(Quantize(4, 8)) == Quantize(8, 8)
    with pytest.raises(StudyError) as caught:
        as_strong_as_two(PruneHeads())
    assert str(caught.value) == (
        "prune-heads() has no form as strong as two of it; give prune-channels a ratio, distill a width."
    )
    with pytest.raises(StudyError, match=r"has no milder form; only quantize has one, at twice the bits\.$"):
        milder(PruneChannels(0.5))
