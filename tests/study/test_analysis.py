"""From records with a known truth to verdicts and the law: no network is trained here."""

import dataclasses
import json

import numpy as np
import pytest

from chainfx.errors import StudyError
from chainfx.passes import EarlyExit, PruneChannels, Quantize
from chainfx.report.study import outcome_text
from chainfx.report.study_html import result_html
from chainfx.study import MEASURED, CaseRecord, Origin, Point, StudyStore, analyse, area_under_front
from chainfx.study.verdicts import paired
from tests.study.designs import tiny

GRIDS = {
    "P": (PruneChannels(0.25), PruneChannels(0.5)),
    "Q": (Quantize(8, 8), Quantize(4, 4)),
    "E": (EarlyExit(exits=1, threshold=1.01, keep=True),),
}
ORIGIN = Origin("net", "x86_64 cpu", "0", "2")
SIZE = 1e6


def design(seeds=8, **changes):
    return tiny(passes=GRIDS, seeds=tuple(range(seeds)), tiers=(0.0, 0.02), **changes)


def record(case, points, *, origin=ORIGIN, failed=None, share=None):
    """``points``: (ratio, loss, threshold) against an original with 90 % accuracy; ``share``: of its time."""
    measured = {} if share is None else dict.fromkeys(MEASURED, share)
    made = [
        Point(threshold, 0.9 - loss, 0.8 - loss, {"mac_bw_ba": SIZE / ratio, "strict": SIZE / ratio**0.5}, measured)
        for ratio, loss, threshold in points
    ]
    return CaseRecord.of(
        case,
        origin,
        stage="s",
        points=() if failed else tuple(made),
        storage_bits=1000 if not case.passes else 250,
        seconds=2.0 * len(case.passes),
        failed=failed,
    )


def filled(
    folder,
    study,
    gain,
    *,
    skip=lambda case: False,
    failed=lambda case: None,
    origin=lambda case: ORIGIN,
    timed=None,
    spent=lambda epochs: 1.0,
):
    """A store with records of every case; ``gain(first letter, seed)`` is how much further a chain compresses.

    ``timed``: which share of the original's time, bytes and memory a chain takes. ``spent``: how much further still a
    chain compresses whose stages have so many epochs.
    """
    store = StudyStore.create(folder, study, "subject")
    for case in study.all_cases():
        if skip(case):
            continue
        letters = "".join(step[0] for step in case.steps)
        strength = sum(int(step[2]) for step in case.steps)
        ratio = (
            2.0 ** (len(letters) + strength)
            * (gain(letters, case.seed) if len(letters) > 1 else 1)
            * spent(case.epochs)
        )
        rows = [(ratio, 0.01 * strength, None)]
        if "E" in letters:
            rows = [(ratio * (2 - threshold), 0.05 * (1 - threshold), threshold) for threshold in study.thresholds[:3]]
        rows = rows if case.passes else [(1.0, 0.0, None)]
        share = None if timed is None else (timed(letters) if case.passes else 1.0)
        store.keep(record(case, rows, failed=failed(case), origin=origin(case), share=share))
    return store


def further(letters, seed):
    """PQ compresses 1.5 times further than QP, E goes last but for Q, where both orders are the same."""
    noise = 1 + 0.01 * np.sin(7 * seed + len(letters) + ord(letters[0]))
    return noise * {"PQ": 1.5, "EP": 0.5}.get(letters, 1.0)


def test_a_known_truth_is_found(tmp_path):
    result = analyse(filled(tmp_path, design(), further))
    pq = result.verdicts[0]
    assert [(each.first, each.second, each.better, each.decision.outcome) for each in result.verdicts] == [
        ("PQ", "QP", "PQ", "first"),
        ("PE", "EP", "PE", "first"),
        ("QE", "EQ", None, "equivalent"),
    ]
    assert pq.factor == pytest.approx(1.5, rel=0.02) and pq.interval[0] < pq.factor < pq.interval[1]
    assert pq.also["strict"] == pytest.approx(1.5**0.5, rel=0.02) and pq.also["storage"] == 1
    assert pq.also["test set"] == pytest.approx(pq.factor)
    # at no loss only the mild pair counts, 2 ** 2 times; at 0.02 also the strongest, 2 ** 4 times
    assert [pq.tiers[tier][1] for tier in (0.0, 0.02)] == pytest.approx([4, 16], rel=0.02)
    assert (pq.seeds, pq.configurations, pq.failed, pq.primary) == (tuple(range(8)), 4, 0, True)
    law = result.law()
    assert law.order == ("prune-channels", "quantize", "early-exit") and not law.unique
    assert law.equivalent == (("quantize", "early-exit"),) and law.undecided == ()
    assert [(edge.before, edge.after) for edge in law.edges] == [
        ("prune-channels", "quantize"),
        ("prune-channels", "early-exit"),
    ]
    assert law.source == (
        "chainfx study 'pairwise' of zoo.resnet {'blocks': [1], 'width': 4, 'in_channels': 1} on digits, 8 seeds, "
        "training 'paper', on x86_64 cpu, torch 2"
    )


def test_the_other_way_round_the_edge_turns(tmp_path):
    result = analyse(filled(tmp_path, design(), lambda letters, seed: 1 / further(letters, seed)))
    assert result.verdicts[0].better == "QP" and result.verdicts[0].factor == pytest.approx(1 / 1.5, rel=0.02)
    (edge,) = (edge for edge in result.law().edges if "early-exit" not in (edge.before, edge.after))
    assert (edge.before, edge.after) == ("quantize", "prune-channels") and edge.factor == pytest.approx(1.5, rel=0.02)


def test_seven_seeds_decide_nothing(tmp_path):
    result = analyse(filled(tmp_path, design(7), further))
    assert {each.decision.outcome for each in result.verdicts} == {"undecided"}
    assert result.verdicts[0].decision.more_seeds == 1 and len(result.law().undecided) == 3
    leaning = {(edge.before, edge.after): edge.confidence for edge in result.law().edges}
    assert leaning["prune-channels", "quantize"] > 0.99
    turned = analyse(filled(tmp_path / "turned", design(7), lambda letters, seed: 1 / further(letters, seed)))
    leaning = {(edge.before, edge.after): edge.confidence for edge in turned.law().edges}
    assert leaning["prune-channels", "quantize"] < -0.99


def test_a_seed_that_lacks_a_case_does_not_count(tmp_path):
    store = filled(tmp_path, design(), further, skip=lambda case: case.seed == 3 and case.steps == ("Q:1", "P:0"))
    verdicts = analyse(store).verdicts
    assert [len(each.seeds) for each in verdicts] == [7, 8, 8]
    assert analyse(store).status.recorded == analyse(store).status.cases - 1


def test_a_configuration_that_failed_is_left_out_of_both_arms(tmp_path):
    def failed(case):
        return "PassError: no." if case.seed == 2 and case.steps == ("P:1", "Q:1") else None

    result = analyse(filled(tmp_path, design(), further, failed=failed))
    assert result.verdicts[0].failed == 1 and len(result.verdicts[0].seeds) == 8
    assert result.verdicts[0].factor == pytest.approx(1.5, rel=0.02)
    assert result.status.failures == ("prune-channels(ratio=0.5) > quantize(4, 4) (paper): PassError: no.",)


def test_records_of_different_origins_are_not_compared(tmp_path):
    other = dataclasses.replace(ORIGIN, machine="aarch64 cpu")
    moved = filled(tmp_path, design(), further, origin=lambda case: other if case.steps[:1] == ("Q:0",) else ORIGIN)
    assert [len(each.seeds) for each in analyse(moved).verdicts] == [0, 8, 0]
    assert analyse(moved).origins == (ORIGIN,)


def test_of_two_origins_the_one_with_most_records_counts(tmp_path):
    other = dataclasses.replace(ORIGIN, torch="3")
    filled(tmp_path, design(), further)
    few = filled(tmp_path, design(), further, origin=lambda case: other, skip=lambda case: len(case.steps) > 1)
    assert len(few.records()) == 176 + 8 * 6
    assert analyse(few).origins == (ORIGIN,) and analyse(few).verdicts[0].seeds == tuple(range(8))


def test_fronts_are_compared_at_equal_numbers_of_points(tmp_path):
    study = tiny(passes=GRIDS, orders="ablation", seeds=tuple(range(8)))
    store = filled(tmp_path, study, lambda letters, seed: 1.0)
    first = analyse(store).verdicts[0]  # PQ (4 points) against P (2), PQE (12) against PQ (4)
    assert first.configurations == 4 and first.better == "PQ"
    one, other = np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([[1.5, 0.0]])
    assert paired([(one,)], [(other,)], 0.1)[0] == pytest.approx(0, abs=0.1)
    assert paired([(one, other)], [(other, one)], 0.1)[0] == 0
    assert paired([(one,)], [(one / 2,)], 0.1)[0] == pytest.approx(area_under_front(one, 0.1) / 2)


def test_a_study_of_no_records_says_so(tmp_path):
    result = analyse(StudyStore.create(tmp_path, design(), "subject"))
    assert result.seeds == () and {each.decision.more_seeds for each in result.verdicts} == {8}
    assert "on no machine" in result.law().source


def test_the_result_is_plain_json(tmp_path):
    plain = json.loads(json.dumps(analyse(filled(tmp_path, design(), further)).to_dict()))
    assert plain["laws"]["paper"]["order"][0] == "prune-channels"
    assert plain["verdicts"][0]["decision"]["outcome"] == "first"
    assert plain["status"]["recorded"] == plain["status"]["cases"]


def test_the_text_of_a_result(tmp_path):
    lines = [line.rstrip() for line in str(analyse(filled(tmp_path, design(), further))).splitlines()]
    assert lines[0] == "paper: stages trained as the paper defines them"
    assert " ".join(lines[1].split()) == "comparison verdict confidence factor 95 % seeds"
    assert " ".join(lines[3].split()) == "PQ / QP PQ better 1.000 1.50 1.44..1.51 8"
    assert any(" ".join(line.split()) == "PQ / QP 6.0x / 4.0x 24.0x / 16.0x" for line in lines)
    assert "law (paper)" in lines and "  quantize and early-exit: equivalent" in lines
    assert lines[-1] == "176 of 176 cases, 9.9 minutes of stages"


def test_the_text_of_a_study_that_is_not_finished(tmp_path):
    few = analyse(filled(tmp_path, design(7), further, skip=lambda case: len(case.steps) > 1 and case.seed > 0))
    assert "undecided (+7 seeds)" in str(few)
    assert str(few).splitlines()[-1].endswith("minutes left on one process")


def test_the_text_of_a_design_that_compares_nothing():
    lines = str(design(orders="alone")).splitlines()
    assert lines[-1] == "nothing is compared: the points of each pass alone are measured"
    assert not any("configurations" in line for line in lines)


def test_a_study_that_compares_nothing_shows_each_pass_alone(tmp_path):
    result = analyse(filled(tmp_path, design(orders="alone"), further))
    lines = [" ".join(line.split()) for line in str(result).splitlines()]
    assert lines[1] == "pass alone ratio loss of accuracy least most seeds"
    assert lines[4] == "prune-channels(ratio=0.5) 4.0x 1.00% 1.00% 1.00% 8"
    assert lines[7] == f"{GRIDS['E'][0].label} at 0 4.0x 5.00% 5.00% 5.00% 8"
    assert not any("comparison" in line or "law" in line for line in lines)
    page = result_html(result)
    assert "<td>prune-channels(ratio=0.5)</td><td>4.0x</td>" in page and "<th>comparison</th>" not in page


def test_a_study_of_both_budgets_has_verdicts_by_both(tmp_path):
    both = design(orders="ablation", budget="both", trainings=("paper",))
    longest = 3 * both.tuning.epochs  # of the one stage of P
    result = analyse(filled(tmp_path, both, further, spent=lambda epochs: 20.0 if epochs == longest else 1.0))
    assert [(each.first, each.second, each.better) for each in result.verdicts] == [
        ("PQ", "P", "PQ"),
        ("PQE", "PQ", "PQ"),
    ]
    assert result.under("per stage").verdicts == result.verdicts
    assert [each.better for each in result.under("total").verdicts] == ["P", "PQ"]
    text = [line.rstrip() for line in str(result).splitlines()]
    headings = [line for line in text if line.startswith("paper")]
    assert headings == [
        "paper: stages trained as the paper defines them",
        "paper, and arms trained equally long in all",
    ]
    assert "<h3>arms trained equally long in all</h3>" in result_html(result)
    assert len(result.to_dict()["verdicts_total"]) == 2
    with pytest.raises(StudyError) as caught:
        result.under("total").under("per stage")
    assert str(caught.value) == (
        "arms of the study were trained under the budget 'total' and not 'per stage'; run it with budget='both'."
    )


def test_the_text_of_a_design():
    lines = str(design(trainings=("paper", "equal"))).splitlines()
    assert lines[0] == "study 'pairwise' of zoo.resnet on digits"
    assert lines[2] == "  Q  quantize(8, 8), quantize(4, 4)"
    assert "2 or 4 configurations of an order, a reduced grid: the paper tries about 20" in lines
    assert "9 arms (P, Q, E, PQ, QP, PE, EP, QE, EQ)" in lines
    assert "336 stages to train; 592 if beginnings were not shared" in lines
    assert lines[-1] == (
        "no least p (t test); a difference of 1.4 standard deviations is found in four of five studies"
    )
    flips = str(design(test="sign-flip")).splitlines()[-1]
    assert flips.startswith("the least p after correction is 0.023; a difference of 1.4 ")
    assert str(design(3)).splitlines()[-1] == "with 3 seeds, fewer than 8, every verdict will be 'undecided'"


def test_orders_that_both_lose_too_much_are_undecided_and_not_equivalent(tmp_path):
    store = filled(tmp_path, design(), further)
    for found in store.records():
        if len(found.passes) == 2:
            points = tuple(dataclasses.replace(point, accuracy=0.5) for point in found.points)
            store.keep(dataclasses.replace(found, points=points))
    (pq, *_) = analyse(store).verdicts
    assert (pq.decision.outcome, pq.factor, pq.empty) == ("undecided", 1.0, True)
    assert outcome_text(pq) == "undecided (all lose too much)"
