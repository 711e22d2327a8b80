"""Search over the options of passes: all of few combinations, optuna's choice of many, the best within a budget."""

import sys

import pytest
import torch

import chainfx
from chainfx.errors import InputError
from chainfx.passes import PostTrainingQuantize, PruneChannels
from chainfx.search import Range, Search
from tests.nets import images, small_resnet, warm
from tests.trainers import FakeTrainer

INPUTS = images(20, size=8)
CHAIN = [PruneChannels(0.5, round_to=1), PostTrainingQuantize(8, 8)]


@pytest.fixture(scope="module")
def net():
    return warm(small_resnet((1,)), INPUTS)


def found(net, search, passes=CHAIN, **options):
    return chainfx.compile(
        net, passes, example_inputs=INPUTS[:2], trainer=FakeTrainer(INPUTS), search=search, **options
    )


@pytest.fixture(scope="module")
def grid(net, tmp_path_factory):
    search = Search({"prune-channels": {"ratio": [0.25, 0.5]}, "post-training-quantize": {"weights": [8, 4]}}, budget=1)
    return found(net, search, workdir=tmp_path_factory.mktemp("search"))


def test_few_combinations_are_all_tried(grid):
    assert [trial.options["prune-channels"]["ratio"] for trial in grid.trials] == [0.25, 0.25, 0.5, 0.5]
    assert [trial.passes[1].weights for trial in grid.trials] == [8, 4, 8, 4]
    assert all(trial.failed is None and 0 < trial.cost < 1 for trial in grid.trials)


def test_the_cheapest_within_the_budget_is_chosen_and_compiled(net, grid):
    assert grid.chosen == min(grid.trials, key=lambda trial: trial.cost)
    assert grid.model(INPUTS).shape == (20, 10)
    record = grid.model.report.records[-1]
    assert record.after.expected_bitops / grid.model.report.records[0].after.bitops == grid.chosen.cost
    again = chainfx.compile(net, grid.chosen.passes, example_inputs=INPUTS[:2], trainer=FakeTrainer(INPUTS))
    assert again.report.records[-1].fingerprint == record.fingerprint


def test_no_trial_beats_one_of_the_front(grid):
    for trial in grid.front:
        assert not any(other.loss <= trial.loss and other.cost < trial.cost for other in grid.trials)
    losses = [trial.loss for trial in grid.front]
    assert losses == sorted(losses)


def test_a_second_search_finds_the_stages_of_the_first(net, tmp_path):
    trainers = [FakeTrainer(INPUTS), FakeTrainer(INPUTS)]
    search = Search({"prune-channels": {"ratio": [0.25, 0.5]}}, budget=1)
    for trainer in trainers:
        chainfx.compile(net, CHAIN, example_inputs=INPUTS[:2], trainer=trainer, search=search, workdir=tmp_path)
    assert [len(trainer.requests) for trainer in trainers] == [2, 0]


def test_a_budget_that_no_trial_keeps_gives_no_model_and_says_so(net):
    class Worse(FakeTrainer):
        def evaluate(self, graph_module):
            return 0.9 if graph_module(self.x).shape[1] and not self.requests else 0.25

    search = Search({"prune-channels": {"ratio": [0.5]}}, budget=0.01)
    result = chainfx.compile(net, CHAIN[:1], example_inputs=INPUTS[:2], trainer=Worse(INPUTS), search=search)
    assert result.model is None and result.chosen is None
    assert " ".join(" ".join(str(result).splitlines()[-2:]).split()) == (
        "no trial is within the budget of 0.01: the nearest one (prune-channels ratio=0.5) loses 0.65; give milder "
        "options, more trials or a larger budget."
    )


def test_what_cannot_be_compiled_is_a_failed_trial(net):
    search = Search({"prune-channels": {"skip": [(), ("nowhere",)]}}, budget=1)
    result = found(net, search, CHAIN[:1])
    assert [trial.failed is None for trial in result.trials] == [True, False]
    assert result.trials[1].failed in " ".join(str(result).split())
    with pytest.raises(InputError) as caught:
        found(net, Search({"prune-channels": {"skip": [("nowhere",)]}}, budget=1), CHAIN[:1])
    assert str(caught.value) == f"search: none of 1 trials can be compiled; the first: {result.trials[1].failed}"


def test_of_more_combinations_optuna_chooses_the_same_ones_again(net, tmp_path):
    pytest.importorskip("optuna", reason="optuna is not installed")
    search = Search({"prune-channels": {"ratio": Range(0.1, 0.8)}}, budget=1, trials=4, seed=3)
    results = [found(net, search, CHAIN[:1], workdir=tmp_path) for _ in range(2)]
    ratios = [[trial.options["prune-channels"]["ratio"] for trial in result.trials] for result in results]
    assert ratios[0] == ratios[1] and len(set(ratios[0])) == 4
    assert all(0.1 <= ratio <= 0.8 for ratio in ratios[0])
    whole = found(net, Search({"post-training-quantize": {"weights": Range(2, 8)}}, 1, trials=3), CHAIN[1:])
    assert all(type(trial.passes[0].weights) is int for trial in whole.trials)


def test_optuna_missing(net, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError) as caught:
        found(net, Search({"prune-channels": {"ratio": [0.2, 0.4, 0.6]}}, budget=1, trials=2))
    assert str(caught.value) == (
        "search: 2 of 3 combinations are to be chosen, and optuna, which does that, is not installed; "
        "pip install chainfx[search], or give fewer values or more trials."
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Search({}, budget=0),
            "search: there are no options to try; give some, such as {'prune-channels': {'ratio': [0.25, 0.5]}}.",
        ),
        (
            lambda: Search({"fuse": {"skip": "abc"}}, budget=0),
            "search: skip of fuse is 'abc'; give a list of values to try, or a Range of numbers.",
        ),
        (
            lambda: Search({"fuse": {"skip": []}}, budget=0),
            "search: skip of fuse is []; give a list of values to try, or a Range of numbers.",
        ),
        (lambda: Search({"a": {"b": [1]}}, budget=-1), "search: budget=-1 is out of range; use a number from 0."),
        (
            lambda: Search({"a": {"b": [1]}}, budget=0, trials=0),
            "search: trials=0 is out of range; use a whole number from 1.",
        ),
        (
            lambda: Search({"a": {"b": [1]}}, budget=0, cost="watts"),
            "search: cost='watts' is not known; use 'bitops' or 'storage'.",
        ),
        (
            lambda: Range(2, 1),
            "search: Range(low=2, high=1, log=False) has no numbers; give low < high, and for log=True low > 0.",
        ),
    ],
)
def test_wrong_searches(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            Search({"quantize": {"weights": [4]}}, budget=0),
            "search: there is no pass 'quantize' in the chain; use prune-channels, post-training-quantize.",
        ),
        ("all", "search is a str; give a chainfx.Search, or leave it out."),
    ],
)
def test_searches_that_do_not_fit_the_chain(net, search, message):
    with pytest.raises(InputError) as caught:
        found(net, search)
    assert str(caught.value) == message


def test_an_unknown_option_is_named_beside_those_that_exist(net):
    with pytest.raises(InputError, match=r"^search: prune-channels has no option 'rate'; use ratio, .*\.$"):
        found(net, Search({"prune-channels": {"rate": [0.5]}}, budget=0))


def test_a_search_needs_a_trainer(net):
    search = Search({"prune-channels": {"ratio": [0.5]}}, budget=0)
    with pytest.raises(InputError) as caught:
        chainfx.compile(net, CHAIN[:1], example_inputs=INPUTS[:2], search=search)
    assert str(caught.value) == (
        "a search needs a trainer, which measures its trials, and there is none; give trainer=...."
    )


def test_the_front_by_storage(net):
    search = Search({"prune-channels": {"ratio": [0.25, 0.5]}}, budget=1, cost="storage")
    result = found(net, search, CHAIN[:1])
    small, large = result.trials[1], result.trials[0]
    records = result.model.report.records
    assert small.cost < large.cost and small.cost == records[-1].after.storage_bits / records[0].after.storage_bits
    assert torch.isfinite(result.model(INPUTS)).all()


def test_a_search_without_a_budget_says_so():
    with pytest.raises(InputError) as caught:
        Search({"prune-channels": {"ratio": [0.5]}})
    assert str(caught.value) == (
        "search: there is no budget; give by how much the metric may get worse, such as budget=0.01."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "search: options=[] cannot be; give a mapping for each pass."),
        ({"fuse": [1]}, "search: options={'fuse': [1]} cannot be; give a mapping for each pass."),
        (
            {"quantize": {"weights": {"low": 2, "hi": 8}}},
            "search: weights={'low': 2, 'hi': 8} is no range; give it low and high, and perhaps log.",
        ),
    ],
)
def test_plain_options_have_a_form(options, message):
    with pytest.raises(InputError) as caught:
        Search.from_plain(options, budget=0.01)
    assert str(caught.value) == message
