"""PruneChannels: how many, which, what it says about the rest, and its errors word for word."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainfx.errors import PassError
from chainfx.ir.capture.ways import capture
from chainfx.ir.graph import edit, layers_of
from chainfx.passes.base import Granularity, Kind, PassContext, TuneRequest
from chainfx.passes.prune_channels import PruneChannels
from chainfx.passes.pruning.importance import importance_names
from tests.nets import Scaled, graph_of


class Tiny(nn.Module):
    """A residual net: group ``stem`` of 10 units (stem, block.1), group ``block.0`` of 8 units."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.block = nn.Sequential(nn.Conv2d(10, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 10, 1))
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.head((x + self.block[3](self.block[2](self.block[1](self.block[0](x))))).mean((2, 3)))


def prepared(model=None, seed=0):
    torch.manual_seed(seed)
    inputs = (torch.randn(2, 3, 6, 6),)
    graph_module = capture((model or Tiny()).eval(), inputs, compare=False)
    return graph_module, PassContext(reference=copy.deepcopy(graph_module), example_inputs=inputs, seed=seed)


def apply(step, model=None):
    graph_module, context = prepared(model)
    return step.apply(copy.deepcopy(graph_module), context), graph_module


def rows(graph_module, path="stem"):
    return graph_module.get_parameter(f"{path}.weight").shape[0]


@pytest.mark.parametrize(
    ("units", "ratio", "round_to", "kept"),
    [
        (64, 0.4, 1, 38),
        (512, 0.4, 1, 307),
        (64, 0.15, 1, 54),
        (10, 0.9, 1, 1),
        (160, 0.9, 1, 16),
        (64, 0.3, 8, 40),
        (8, 0.5, 8, 8),
        (20, 0.7, 8, 8),
        (6, 0.5, 8, 6),
        (7, 0.0, 1, 7),
    ],
)
def test_kept_count(units, ratio, round_to, kept):
    model = nn.Sequential(nn.Conv2d(3, units, 1), nn.Conv2d(units, 2, 1))
    result, _ = apply(PruneChannels(ratio, round_to=round_to), model)
    assert rows(result.graph_module, "0") == kept
    assert edit.get_tensor(result.graph_module, "1.weight").shape == (2, kept, 1, 1)
    assert result.modified == (kept < units)
    assert result.tune == (TuneRequest() if kept < units else None)


def test_info():
    info = PruneChannels.info
    assert (info.name, info.kind, info.granularity) == ("prune-channels", Kind.STATIC, Granularity.NEURON)
    assert info.needs == {"calibration"} and info.establishes == frozenset() and info.repeatable
    assert PruneChannels(0.5).needs == PruneChannels(importance="fpgm").needs == frozenset()
    assert PruneChannels(importance="taylor").needs == PruneChannels(compensate=True).needs == {"calibration"}


def test_ratio_zero_changes_nothing():
    result, before = apply(PruneChannels(0.0))
    assert (result.modified, result.tune) == (False, None)
    assert result.graph_module.code == before.code
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in result.graph_module.state_dict().items())


@pytest.mark.parametrize(("importance", "order"), [("l1", 1), ("l2", 2)])
def test_the_units_with_the_smallest_filters_go(importance, order):
    result, before = apply(PruneChannels(0.5, importance))
    weight = {name: tensor.detach().double() for name, tensor in before.named_parameters()}
    parts = [weight["stem.weight"], weight["block.3.weight"]]
    parts += [weight["block.0.weight"].transpose(0, 1), weight["head.weight"].t()]
    norms = sum(part.abs().pow(order).flatten(1).sum(1) for part in parts)
    best = norms.topk(5).indices.sort().values
    assert torch.equal(result.graph_module.get_parameter("stem.weight"), before.get_parameter("stem.weight")[best])
    assert torch.equal(result.graph_module.get_parameter("head.weight"), before.get_parameter("head.weight")[:, best])


def test_bn_importance_follows_the_scales():
    model = Tiny()
    del model.block[3]
    model.block.append(nn.Conv2d(8, 10, 1))
    with torch.no_grad():
        model.norm.weight.copy_(torch.arange(10) - 4.0)
        model.block[1].weight.copy_(torch.tensor([0, 9, 0, -9, 0, 9, 0, 9.0]))
    result, before = apply(PruneChannels(0.5, "bn"), model)
    kept = torch.tensor([0, 1, 7, 8, 9])
    assert torch.equal(result.graph_module.get_parameter("stem.weight"), before.get_parameter("stem.weight")[kept])
    block = before.get_parameter("block.0.weight")[[1, 3, 5, 7]][:, kept]
    assert torch.equal(result.graph_module.get_parameter("block.0.weight"), block)


def test_random_follows_the_seed():
    graph_module, context = prepared()
    step = PruneChannels(0.5, "random")
    first, second = (step.apply(copy.deepcopy(graph_module), context).graph_module for _ in range(2))
    other = PassContext(reference=graph_module, example_inputs=context.example_inputs, seed=7)
    third = step.apply(copy.deepcopy(graph_module), other).graph_module
    assert torch.equal(first.get_parameter("stem.weight"), second.get_parameter("stem.weight"))
    assert not torch.equal(first.get_parameter("stem.weight"), third.get_parameter("stem.weight"))


def test_the_model_itself_is_untouched_and_frozen_parameters_prune():
    model = Tiny().requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result, _ = apply(PruneChannels(0.5), model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert rows(result.graph_module) == 5
    assert not any(p.requires_grad for p in result.graph_module.parameters())
    assert result.graph_module.get_submodule("norm").num_features == 5


def test_twice():
    graph_module, context = prepared()
    step = PruneChannels(0.5)
    step.apply(graph_module, context)
    again = step.apply(graph_module, context)
    assert rows(again.graph_module) == 2
    assert again.graph_module(*context.example_inputs).shape == (2, 4)


def test_skipped_names_outputs_and_patterns():
    result, _ = apply(PruneChannels(0.5, skip=("block.0",)))
    assert [(each.node, each.reason) for each in result.skipped] == [
        ("head", "4 channels stay: it is an output of the network"),
        ("block_0", "a pattern of skip matches it"),
    ]
    assert rows(result.graph_module) == 5 and rows(result.graph_module, "block.0") == 8
    result, _ = apply(PruneChannels(0.5, skip=("block.*",)))
    assert not result.modified


def test_include_names_what_is_pruned_and_skip_wins():
    result, _ = apply(PruneChannels(0.5, include=("block.0",)))
    assert (rows(result.graph_module), rows(result.graph_module, "block.0")) == (10, 4)
    assert ("stem", "no pattern of include matches it") in [(each.node, each.reason) for each in result.skipped]
    result, _ = apply(PruneChannels(0.5, include=("block.*",), skip=("stem",)))
    assert (rows(result.graph_module), rows(result.graph_module, "block.0")) == (10, 4)


class Partly(nn.Module):
    """A layer whose weight is computed, a table of positions, a recurrent layer, and two layers that can be pruned."""

    def __init__(self):
        super().__init__()
        self.places, self.enter = nn.Parameter(torch.randn(6, 8)), Scaled(nn.Linear(5, 8))
        self.lstm, self.middle, self.out = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        _, (hidden, cell) = self.lstm(self.enter(x) + self.places)
        return self.out(self.middle(hidden[0] + cell[0]).relu())


def said(step, model, *shape):
    x = torch.randn(shape)
    graph_module = graph_of(model.eval(), x)
    result = step.apply(copy.deepcopy(graph_module), PassContext(graph_module, (x,)))
    return {each.node: each.reason for each in result.skipped}, result


def test_what_is_in_no_group_is_named_with_the_reason_of_the_analysis():
    reasons, result = said(PruneChannels(0.5), Partly(), 2, 6, 5)
    assert reasons == {
        "out": "3 channels stay: it is an output of the network",
        "enter_layer": "its weight is computed",
        "lstm": "the inside of module LSTM is not visible",
        "places": "none of its dimensions has channels that can go",
    }
    assert rows(result.graph_module, "middle") == 4


def test_a_group_that_loses_nothing_is_named_by_all_the_layers_that_make_it():
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 8), nn.Linear(8, 2))
    reasons, _ = said(PruneChannels(0.25), model, 2, 5)
    assert reasons == {"_2": "2 channels stay: it is an output of the network"}
    reasons, _ = said(PruneChannels(0.25, round_to=4), model, 2, 5)
    assert reasons["_0"] == "none of the 3 units of group '_0' goes"
    reasons, _ = said(PruneChannels(0.5, skip=("b",)), Coupled(), 2, 5)
    assert reasons == {
        **dict.fromkeys(("a", "b"), "a pattern of skip matches it"),
        "out": "2 channels stay: it is an output of the network",
    }


class Coupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.a(x) + self.b(x))


def test_spec_round_trip():
    step = PruneChannels(0.25, "bn", 4, ("stem", "block.*"))
    assert step.spec() == {
        "pass": "prune-channels",
        "ratio": 0.25,
        "importance": "bn",
        "round_to": 4,
        "skip": ["stem", "block.*"],
        "include": [],
        "scope": "uniform",
        "max_ratio": 1.0,
        "macs": None,
        "bitops": None,
        "parameters": None,
        "latency": None,
        "rounds": 1,
        "schedule": "linear",
        "compensate": False,
        "keep": False,
    }
    assert PruneChannels.from_spec(step.spec()) == step
    assert step.label == "prune-channels(ratio=0.25, importance='bn', round_to=4, skip=('stem', 'block.*'))"
    other = PruneChannels(macs=0.5, scope="global", max_ratio=0.8, rounds=3, schedule="gradual", compensate=True)
    assert PruneChannels.from_spec(json.loads(json.dumps(other.spec()))) == other


def test_half_of_every_group_goes_if_nothing_is_said():
    assert rows(apply(PruneChannels())[0].graph_module) == rows(apply(PruneChannels(0.5))[0].graph_module) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "ratio=1.0 is out of range; use a number from 0 up to but not including 1."),
        ({"ratio": -0.1}, "ratio=-0.1 is out of range; use a number from 0 up to but not including 1."),
        ({"importance": "size"}, "importance='size' is out of range; use one of KNOWN."),
        ({"importance": 1}, "importance=1 is out of range; use one of KNOWN."),
        (
            {"importance": len},
            "importance is a function, which a recipe or record cannot hold; register it with "
            "chainfx.passes.pruning.register_importance('name') and give the name.",
        ),
        ({"round_to": 0}, "round_to=0 is out of range; use 'auto' or an integer of at least 1."),
        ({"round_to": "8"}, "round_to='8' is out of range; use 'auto' or an integer of at least 1."),
        ({"skip": "block"}, "skip='block' is out of range; use a tuple of patterns."),
        ({"include": ["a"]}, "include=['a'] is out of range; use a tuple of patterns."),
        ({"scope": "all"}, "scope='all' is out of range; use 'uniform' or 'global'."),
        ({"max_ratio": 2}, "max_ratio=2 is out of range; use a number from 0 to 1."),
        ({"macs": 0}, "macs=0 is out of range; use a number in (0, 1]."),
        ({"latency": 1.5}, "latency=1.5 is out of range; use a number in (0, 1]."),
        ({"rounds": 0}, "rounds=0 is out of range; use an integer of at least 1."),
        ({"schedule": "cubic"}, "schedule='cubic' is out of range; use 'linear' or 'gradual'."),
        ({"compensate": 1}, "compensate=1 is out of range; use true or false."),
        ({"keep": "yes"}, "keep='yes' is out of range; use true or false."),
        (
            {"ratio": 0.5, "macs": 0.5},
            "ratio and macs are given; give one of ratio, macs, bitops, parameters and latency.",
        ),
        (
            {"ratio": 0.5, "max_ratio": 0.3},
            "ratio=0.5 is above max_ratio=0.3; raise max_ratio, or use scope='global'.",
        ),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(PassError) as caught:
        PruneChannels(**options)
    assert str(caught.value) == f"prune-channels: {message.replace('KNOWN', ', '.join(importance_names()))}"


def test_emptied_group():
    with pytest.raises(PassError) as caught:
        apply(PruneChannels(0.9, round_to=4))
    assert str(caught.value) == (
        "prune-channels: ratio=0.9 leaves none of the 8 units of group 'block_0'; "
        "use a ratio of at most 0.875 or add 'block.0' to skip."
    )


@pytest.mark.parametrize("option", ["skip", "include"])
def test_pattern_without_match(option):
    with pytest.raises(PassError) as caught:
        apply(PruneChannels(0.5, **{option: ("layer1.*",)}))
    assert str(caught.value) == (
        f"prune-channels: the pattern 'layer1.*' in {option} matches no layer; layers are stem, block.3, block.0, head."
    )


def test_no_batch_norm():
    with pytest.raises(PassError) as caught:
        apply(PruneChannels(0.5, "bn"), nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)))
    name = next(layers_of(prepared(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)))[0])).name
    assert str(caught.value) == (
        f"prune-channels: group '{name}' has no BatchNorm with a scale, which importance='bn' needs; "
        "use importance='l1' or add '0' to skip."
    )


@pytest.mark.parametrize("importance", ["l1", "l2", "bn", "fpgm", "random"])
def test_weights_that_are_not_finite(importance):
    model = Tiny()
    model.block[0].weight.data[1, 2] = float("nan")
    with pytest.raises(PassError) as caught:
        apply(PruneChannels(0.5, importance), model)
    assert str(caught.value) == (
        "prune-channels: the weight 'block.0.weight' of group 'block_0' is not finite everywhere; "
        "train the network again before pruning."
    )
