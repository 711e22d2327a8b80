"""What passes ask of a trainer, what users ask instead, and terms of their own in the loss."""

import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import chainfx
from chainfx.errors import InputError
from chainfx.passes import Objective, Penalty, PruneWeights, Quantize, Schedule, TuneRequest, Tunings
from chainfx.training import Trainer, digits
from tests.nets import graph_of, images, small_resnet
from tests.trainers import FakeTrainer

X = images(8)


@dataclass(frozen=True)
class Small(Penalty):
    """The sum of the squares of all weights, times ``strength``."""

    strength: float

    def term(self, graph_module):
        return lambda: self.strength * sum(each.square().sum() for each in graph_module.parameters())


class _Scale(nn.Module):
    def __init__(self, graph_module, seen):
        super().__init__()
        self.factor, seen[:] = nn.Parameter(torch.ones(())), [self]
        object.__setattr__(self, "network", graph_module)

    def forward(self):
        return (self.factor - 3).square() + 0 * next(self.network.parameters()).sum()


SEEN = []


@dataclass(frozen=True)
class Learns(Penalty):
    """A term with a parameter of its own, which is least at 3."""

    def term(self, graph_module):
        return _Scale(graph_module, SEEN)


def requests(passes, **tuning):
    trainer = FakeTrainer(X)
    small = chainfx.compile(
        small_resnet((1, 1)), passes, example_inputs=X, trainer=trainer, order="given", tuning=tuning or None
    )
    return trainer.requests, small.report.records


def test_a_request_is_an_objective_and_a_schedule_of_certain_parameters():
    request = TuneRequest(("a",), loss="kd", epochs=3)
    assert isinstance(request, Objective) and isinstance(request, Schedule)
    assert request.plain() == {"parameters": ["a"], "loss": "kd", "epochs": 3}
    assert TuneRequest(teacher=nn.Identity(), penalties=(Small(2.0),)).plain() == {
        "penalties": ["Small(strength=2.0)"],
        "teacher": True,
    }


def test_stages_recover_by_distillation_from_the_original_network():
    (first, second), records = requests([PruneWeights(0.5), Quantize(4, 4)])
    assert first.loss == second.loss == "recover"
    assert first.teacher is second.teacher
    assert torch.equal(first.teacher(X), graph_of(small_resnet((1, 1)), X)(X))
    assert [record.requests for record in records] == [(), ({"teacher": True},), ({"teacher": True},)]


def test_users_override_what_passes_ask_by_pass_and_for_all():
    tuning = {"*": {"loss": "task", "epochs": 2}, "quantize": {"epochs": [4, 5], "learning_rate": 0.25}}
    (first, second), records = requests([PruneWeights(0.5), Quantize(4, 4)], **tuning)
    assert first == TuneRequest(loss="task", epochs=2)
    assert second == TuneRequest(loss="task", epochs=4, learning_rate=0.25)
    assert records[2].requests == ({"loss": "task", "epochs": 4, "learning_rate": 0.25},)


def test_rounds_have_epochs_of_their_own():
    asked, _ = requests([PruneWeights(0.5, rounds=3)], **{"prune-weights": {"epochs": (1, 4)}})
    assert [request.epochs for request in asked] == [1, 4, 4]


def test_the_network_before_the_pass_can_teach():
    asked, _ = requests([PruneWeights(0.5), Quantize(4, 4)], quantize={"teacher": "before"})
    assert str(asked[1].teacher.graph) != str(asked[0].teacher.graph)
    assert "mask_weight" in str(asked[1].teacher.graph) and "quantize" not in str(asked[1].teacher.graph)


def test_options_decide_which_stage_it_is():
    def fingerprints(**tuning):
        return [record.fingerprint for record in requests([PruneWeights(0.5), Quantize(4, 4)], **tuning)[1]]

    plain = fingerprints()
    other = fingerprints(quantize={"epochs": 3})
    assert other[:2] == plain[:2] and other[2] != plain[2]
    assert (
        fingerprints(quantize={"penalties": (Small(1.0),)})[2] != fingerprints(quantize={"penalties": (Small(2.0),)})[2]
    )


def test_a_penalty_is_part_of_what_is_minimised():
    def squares(*penalties):
        torch.manual_seed(0)
        model = graph_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.zeros(2, 1, 8, 8))
        request = TuneRequest(loss="task", learning_rate=0.01, from_scratch=True, penalties=penalties)
        Trainer(digits(), epochs=1).tune(model, request, seed=0, on_epoch=lambda epoch: None)
        return sum(float(each.detach().square().sum()) for each in model.parameters())

    assert squares(Small(1.0)) < 0.9 * squares()


def test_the_parameters_of_a_penalty_are_trained_too():
    model = graph_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.zeros(2, 1, 8, 8))
    request = TuneRequest(loss="task", optimizer="adam", learning_rate=0.3, penalties=(Learns(),))
    Trainer(digits(), epochs=3).tune(model, request, seed=0, on_epoch=lambda epoch: None)
    assert abs(float(SEEN[0].factor.detach()) - 3) < 0.5


def test_norms_biases_and_clips_do_not_decay():
    def left(decay):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        with torch.no_grad():
            model[1].bias.fill_(5.0)
        request = TuneRequest(
            ("1.bias",), loss="task", learning_rate=0.1, weight_decay=1.0, decay=decay, from_scratch=True
        )
        Trainer(digits(), epochs=1).tune(model, request, seed=0, on_epoch=lambda epoch: None)
        return float(model[1].bias.detach().mean())

    assert left("all") < 4 < 4.99 < left("weights")


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (
            {"prune": {}},
            "tuning names 'prune', which is no pass of the chain; it has quantize.",
        ),
        (
            {"quantize": {"epoch": 3}},
            "tuning of 'quantize': there is no option 'epoch'; did you mean 'epochs'?",
        ),
        (
            {"quantize": 3},
            "tuning is {'quantize': 3}; give a mapping from names of passes to options, such as "
            "{'quantize': {'loss': 'task', 'epochs': 5}}.",
        ),
        (
            {"quantize": {"epochs": 0}},
            "tuning: epochs=0 is out of range; use None, a whole number from 1 or a tuple of them, since 0 trains "
            "nothing.",
        ),
        (
            {"*": {"teacher": "mine"}},
            "tuning: teacher='mine' is out of range; use 'original' or 'before'.",
        ),
        (
            {"*": {"loss": "mse"}},
            "tuning: loss='mse' is out of range; use 'recover', 'task' or 'kd'.",
        ),
    ],
)
def test_options_that_are_wrong(tuning, message):
    with pytest.raises(InputError) as caught:
        Tunings.of(tuning, ["quantize"])
    assert str(caught.value) == message


def test_options_have_a_form_in_json():
    found = Tunings.of({"*": {"penalties": (Small(1.0),)}, "quantize": {"epochs": (1, 2)}}, ["quantize"])
    assert json.loads(json.dumps(found.plain("quantize"))) == {"penalties": ["Small(strength=1.0)"], "epochs": [1, 2]}


def test_tuning_without_a_trainer_is_an_error():
    with pytest.raises(InputError) as caught:
        chainfx.compile(small_resnet((1, 1)), [Quantize(8, 8)], example_inputs=X, tuning={"*": {"loss": "task"}})
    assert str(caught.value) == (
        "tuning says how passes are tuned, and there is no trainer; give one, or leave it out."
    )
