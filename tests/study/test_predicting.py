"""Predictions from each pass alone, learnt from synthetic studies: no network is trained here."""

import dataclasses
import json

import pytest

from chainfx.errors import StudyError
from chainfx.study import RULES, observations_of, observed, predict, validate
from tests.study.test_claims import by_table, favours, study

MILD_P = by_table({"P": 0.01, "Q": 0.05, "P Q": 0.05, "Q P": 0.05})


def on(name, order, **changes):
    return study("pairwise", favours(order), network={"name": name, "options": {}}, loss=MILD_P, **changes)


def learnt(*orders):
    return [each for number, order in enumerate(orders) for each in observations_of(on(f"net{number}", order))]


def test_an_observation_is_what_a_study_found_of_a_pair():
    (found,) = learnt("PQ")
    assert (found.first, found.second, found.training) == ("prune-channels", "quantize", "paper")
    assert found.difference == pytest.approx(0.088, abs=0.005)  # log10 of 1.5, over the half of losses from 0.05 on
    assert 0 < found.error < 0.01
    # equal ratios; P loses a tenth of the reference and Q half of it; both are static; neurons against parts of them
    assert found.features[0] == pytest.approx(0, abs=0.01)
    assert found.features[1:] == pytest.approx([-0.4, 0.24, 0.0, -0.25], abs=0.02)
    assert set(found.rules) == set(RULES) and found.rules["weakest first"] == "prune-channels"
    assert found.rules["always D-P-Q-E"] == found.rules["property law"] == "prune-channels"


def test_nothing_learnt_is_no_confidence():
    found = predict(on("mine", "PQ"), [])
    (pair,) = found.predictions
    assert (pair.confidence, pair.factor, found.pairs, found.scores) == (0.5, 1.0, 0, {})
    assert "nothing says how good the prediction is" in str(found)


def test_what_other_networks_show_is_expected_of_a_new_one():
    mine = study("alone", favours(), network={"name": "mine", "options": {}}, loss=MILD_P)
    for order, expected in (("PQ", ("prune-channels", "quantize")), ("QP", ("quantize", "prune-channels"))):
        found = predict(mine, learnt(*[order] * 6))
        assert found.order == expected and found.networks == 6
        assert found.predictions[0].confidence > 0.65 and found.predictions[0].factor > 1.1
    less = predict(mine, learnt("PQ"))
    assert less.predictions[0].confidence < found.predictions[0].confidence


def test_the_order_of_letters_does_not_matter():
    known = learnt("PQ", "PQ")
    one, other = (predict(study("alone", favours(), letters=each, loss=MILD_P), known) for each in ("PQ", "QP"))
    assert one.predictions[0].before == other.predictions[0].before
    assert one.predictions[0].confidence == pytest.approx(other.predictions[0].confidence, abs=0.01)


def test_a_network_does_not_learn_from_itself():
    known = [*learnt("PQ"), *observations_of(on("mine", "QP"))]
    assert predict(on("mine", "QP"), known).pairs == 1


def test_each_network_is_predicted_from_the_others():
    scores = validate(learnt("PQ", "PQ", "QP"))
    assert scores["property law"] == scores["weakest first"] == (2, 3)
    # the odd one is predicted from two that differ, and each of the two from one of each
    assert scores["prediction"][1] == 3 and scores["prediction"][0] <= 2
    assert validate(learnt("PQ", "PQ"))["prediction"] == (2, 2)
    assert validate(learnt("PQ")) == {}
    unsure = [dataclasses.replace(each, error=each.difference) for each in learnt("PQ", "PQ")]
    assert validate(unsure)["prediction"] == (0, 0)


def test_a_study_is_worth_it_where_the_prediction_is_unsure_or_a_rule_differs():
    (pair,) = predict(on("mine", "PQ"), learnt("PQ")).predictions
    sure = dataclasses.replace(pair, confidence=0.95, rules={"a": pair.before, "b": None})
    assert not sure.worth_measuring
    assert dataclasses.replace(sure, confidence=0.85).worth_measuring
    assert dataclasses.replace(sure, rules={"a": pair.after}).worth_measuring


def test_a_prediction_as_text_and_json():
    found = predict(on("mine", "PQ"), learnt("PQ", "PQ"))
    lines = str(found).splitlines()
    assert lines[0] == "order: prune-channels -> quantize"
    assert lines[-2].startswith("learnt from 2 measured pairs of 2 networks; of a network left out, right: ")
    assert lines[-1] == "a study is worth it for 1 of 1 pairs: prune-channels and quantize"
    assert json.loads(json.dumps(found.to_dict()))["predictions"][0]["before"] == "prune-channels"


def test_one_pass_alone_predicts_nothing():
    nothing = dataclasses.replace(on("mine", "PQ"), records={})
    with pytest.raises(StudyError) as caught:
        predict(nothing)
    assert str(caught.value) == (
        "a prediction needs the points of two passes alone or more; run the design 'alone' first."
    )


def test_what_ships_is_what_the_project_measured():
    assert {each.training for each in observed()} == {"paper", "equal"}
    assert all(each.error >= 0 and len(each.features) == 5 for each in observed())
