"""Where the verdict on a pair turns with the strengths of its passes."""

import dataclasses

import pytest

from chainfx.study import analyse, strengths_of
from tests.study.test_analysis import design, filled


def test_a_verdict_that_turns_with_the_strength_is_seen_to_turn(tmp_path):
    """PQ compresses further with the mild pruning, QP with the strong one; each strength of Q says the same."""
    store = filled(tmp_path, design(), lambda letters, seed: 1 + 0.001 * seed * len(letters))
    for record in store.records():
        steps = "".join(step[0] for step in record.steps)
        if steps in ("PQ", "QP") and ("P:0" in record.steps) == (steps == "PQ"):
            point = record.points[0]
            point.bitops.update({name: cost / 2 for name, cost in point.bitops.items()})
            store.keep(record)
    found = [each for each in strengths_of(analyse(store), "paper") if "early-exit" not in each.second]
    assert [(each.first, each.second, each.decision.outcome) for each in found] == [
        ("prune-channels(ratio=0.25)", "quantize(8, 8)", "first"),
        ("prune-channels(ratio=0.25)", "quantize(4, 4)", "first"),
        ("prune-channels(ratio=0.5)", "quantize(8, 8)", "second"),
        ("prune-channels(ratio=0.5)", "quantize(4, 4)", "second"),
    ]
    assert found[0].factor == pytest.approx(2) and found[2].factor == pytest.approx(1 / 2**0.9)


def test_strengths_that_lose_too_much_in_both_orders_are_undecided(tmp_path):
    store = filled(tmp_path, design(), lambda letters, seed: 1.0)
    for record in store.records():
        if len(record.passes) == 2:
            points = tuple(dataclasses.replace(point, accuracy=0.5) for point in record.points)
            store.keep(dataclasses.replace(record, points=points))
    assert {each.decision.outcome for each in strengths_of(analyse(store), "paper")} == {"undecided"}


def test_a_case_that_failed_counts_for_no_strength(tmp_path):
    def failed(case):
        return "no." if case.seed == 2 and case.steps == ("P:1", "Q:1") else None

    found = strengths_of(analyse(filled(tmp_path, design(), lambda letters, seed: 1.0, failed=failed)), "paper")
    outcomes = {(each.first, each.second): each.decision.outcome for each in found}
    assert outcomes["prune-channels(ratio=0.5)", "quantize(4, 4)"] == "undecided"  # seven seeds
    assert list(outcomes.values()).count("equivalent") == len(outcomes) - 1 == 7
