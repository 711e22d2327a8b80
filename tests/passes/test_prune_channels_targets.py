"""PruneChannels to a cost: what is predicted is what is counted; global ranking; caps; rounds."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainfx import zoo
from chainfx.bitops import count
from chainfx.errors import PassError
from chainfx.ir.capture.ways import capture
from chainfx.ir.channels.analyse import analyse_channels
from chainfx.ir.channels.surgery import prune
from chainfx.ir.graph import ops
from chainfx.passes import Quantize
from chainfx.passes.base import PassContext
from chainfx.passes.prune_channels import PruneChannels
from chainfx.passes.pruning.importance import importance_names, register_importance
from chainfx.passes.pruning.selection import Candidate, Ladder, Limits, first_step
from chainfx.passes.pruning.targets import CostModel
from chainfx.testing import check_pass
from tests.budget import mostly_slow
from tests.nets import images, small_resnet, warm


class Attention(nn.Module):
    """Two tokens a sample: qkv, scaled dot-product attention, a matrix product and an MLP."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(6, 24)
        self.out = nn.Linear(8, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v) + (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head(self.out(y.transpose(1, 2).flatten(2)).mean(1))


NETS = {
    "resnet": (small_resnet, lambda: images(3)),
    "grouped": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 8, 3, groups=1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 12, 1, groups=12)),
            *(nn.ConvTranspose2d(12, 8, 2, 2, groups=2), nn.Flatten(), nn.Linear(8 * 64, 3)),
        ).eval(),
        lambda: images(3),
    ),
    "attention": (lambda: Attention().eval(), lambda: torch.randn(3, 7, 6)),
}


def prepared(name="resnet", **options):
    torch.manual_seed(0)
    make, inputs = NETS[name]
    x = (inputs(),)
    graph_module = copy.deepcopy(capture(make(), x, compare=False))
    return graph_module, PassContext(copy.deepcopy(graph_module), x, calibration=[x], seed=0, **options)


def apply(step, name="resnet", **options):
    graph_module, context = prepared(name, **options)
    return step.apply(graph_module, context)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_predicted_costs_are_those_counted_after_the_surgery(name, quantized):
    graph_module, context = prepared(name)
    x = context.example_inputs
    if quantized:
        graph_module = Quantize(4, 8).apply(graph_module, context).graph_module
    analysis = analyse_channels(graph_module, x)
    model = CostModel(graph_module, analysis, x)
    generator = torch.Generator().manual_seed(1)
    changed = 0
    for _ in range(4):
        keep = {}
        for group in analysis.groups:
            number = int(torch.randint(1, group.size + 1, (), generator=generator))
            keep[group.name] = torch.randperm(group.size, generator=generator)[:number].sort().values
        predicted = [model.of(cost, keep) for cost in ("macs", "bitops", "parameters")]
        pruned = copy.deepcopy(graph_module)
        prune(pruned, analysis, keep)
        report = count(pruned, x, convention="strict")
        assert predicted == [report.macs, report.bitops, report.parameters]
        changed += report.macs < model.of("macs", {})
    assert changed == 4


def test_codes_of_a_codebook_count_as_parameters():
    class Coded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 6, 1)
            self.register_buffer("codes", torch.randint(0, 4, (3, 6, 1, 1), dtype=torch.uint8))
            self.codebook = nn.Parameter(torch.randn(4))

        def forward(self, x):
            return F.conv2d(self.first(x), ops.look_up(self.codes, self.codebook), None, 1, 0, 1, 1)

    x = (images(2),)
    graph_module = copy.deepcopy(capture(Coded().eval(), x))
    analysis = analyse_channels(graph_module, x)
    (group,) = analysis.groups
    keep = {group.name: torch.arange(2)}
    predicted = CostModel(graph_module, analysis, x).of("parameters", keep)
    prune(graph_module, analysis, keep)
    assert predicted == count(graph_module, x).parameters == 2 + 2 + 6 + 4


@pytest.mark.parametrize("cost", ["macs", "bitops", "parameters"])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_a_target_is_reached_with_the_least_pruning(cost, scope):
    graph_module, context = prepared()
    x = context.example_inputs
    convention = "strict" if cost == "bitops" else "mac_bw_ba"
    whole = getattr(count(graph_module, x, convention), cost)
    step = PruneChannels(scope=scope, **{cost: 0.5})
    pruned = step.apply(copy.deepcopy(graph_module), context)
    left = getattr(count(pruned.graph_module, x, convention), cost) / whole
    assert left <= 0.5
    assert pruned.profile[cost] == pytest.approx(left)
    more = PruneChannels(scope=scope, **{cost: left * 1.001}).apply(copy.deepcopy(graph_module), context)
    assert more.profile["removed"] == pruned.profile["removed"]
    less = PruneChannels(scope=scope, **{cost: left * 0.999}).apply(copy.deepcopy(graph_module), context)
    assert less.profile["removed"] > pruned.profile["removed"]
    assert not PruneChannels(scope=scope, **{cost: 1.0}).apply(copy.deepcopy(graph_module), context).modified


def test_a_target_out_of_reach_says_how_far_one_gets():
    with pytest.raises(PassError) as caught:
        apply(PruneChannels(macs=0.05, max_ratio=0.5))
    message = str(caught.value)
    lowest = float(message.partition("allow, ")[2].partition(" ")[0])
    assert message == (
        "prune-channels: macs=0.05 cannot be reached; with as few units as max_ratio, round_to, include and skip "
        f"allow, {lowest} of it is left: use that or more."
    )
    assert apply(PruneChannels(macs=lowest, max_ratio=0.5)).profile["macs"] <= lowest


def test_a_global_ratio_out_of_reach():
    with pytest.raises(PassError) as caught:
        apply(PruneChannels(0.9, scope="global", max_ratio=0.5))
    assert str(caught.value) == (
        "prune-channels: ratio=0.9 of 36 units cannot be removed; with max_ratio=0.5 and round_to='auto' at least "
        "18 of them stay."
    )


def candidates(*scores):
    graph_module, context = prepared()
    groups = analyse_channels(graph_module, context.example_inputs).groups
    made = [replace(groups[0], name=str(i), size=len(score)) for i, score in enumerate(scores)]
    return [
        Candidate(group, torch.tensor(score, dtype=torch.float64), len(score))
        for group, score in zip(made, scores, strict=True)
    ]


def sizes(keep):
    return {name: kept.tolist() for name, kept in keep.items()}


def test_of_units_with_equal_scores_the_first_stay():
    (given,) = candidates([1.0, 2, 1, 0, 1, 2])
    assert [given.best(kept).tolist() for kept in (1, 3, 4, 6)] == [
        [1],
        [0, 1, 5],
        [0, 1, 2, 5],
        [0, 1, 2, 3, 4, 5],
    ]


def test_the_global_ladder_takes_the_lowest_of_all():
    given = candidates([4.0, 1, 3, 9], [2.0, 8, 7])
    ladder = Ladder(given, Limits(), [each.score for each in given])
    assert ladder.last == 5
    assert [sizes(ladder.keep(step)) for step in range(4)] == [
        {},
        {"0": [0, 2, 3]},
        {"0": [0, 2, 3], "1": [1, 2]},
        {"0": [0, 3], "1": [1, 2]},
    ]
    assert sizes(ladder.keep(5)) == {"0": [3], "1": [1]}
    assert sizes(ladder.at_share(3 / 7)) == sizes(ladder.keep(3))
    assert ladder.at_share(6 / 7) is None


def test_no_group_falls_below_the_cap_and_all_are_multiples():
    given = candidates([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10], [20.0, 30, 40, 50])
    ladder = Ladder(given, Limits(max_ratio=0.5), [each.score for each in given])
    assert ladder.last == 7
    assert {name: len(kept) for name, kept in ladder.keep(5).items()} == {"0": 5}
    assert {name: len(kept) for name, kept in ladder.keep(7).items()} == {"0": 5, "1": 2}
    rounded = Ladder(given, Limits(max_ratio=0.5, round_to=4))
    assert {name: len(kept) for name, kept in rounded.keep(rounded.last).items()} == {"0": 8}
    assert Limits(max_ratio=0.7, round_to=4).kept(0, 10) == 4
    assert Limits(round_to=8).kept(3, 20) == 8 and Limits(round_to=8).kept(3, 6) == 6


def test_auto_keeps_multiples_of_eight_of_32_units_or_more_and_any_number_of_fewer():
    auto = Limits(round_to="auto")
    assert [auto.kept(wanted, 32) for wanted in (32, 31, 24, 17, 8, 1, 0)] == [32, 24, 24, 16, 8, 8, 8]
    assert [auto.kept(wanted, 31) for wanted in (31, 30, 17, 1, 0)] == [31, 30, 17, 1, 1]
    assert [auto.kept(wanted, 60) for wanted in (60, 59, 9)] == [60, 56, 8]
    assert Limits(max_ratio=0.5, round_to="auto").kept(0, 36) == 24
    model = nn.Sequential(nn.Conv2d(1, 40, 1), nn.Conv2d(40, 20, 1), nn.Conv2d(20, 2, 1)).eval()
    x = (images(2),)
    for round_to, kept in (("auto", [24, 12]), (1, [25, 12])):
        graph_module = copy.deepcopy(capture(model, x))
        PruneChannels(0.37, round_to=round_to).apply(graph_module, PassContext(graph_module, x))
        assert [graph_module.get_parameter(f"{layer}.weight").shape[0] for layer in (0, 1)] == kept
    assert PruneChannels(0.37) == PruneChannels(0.37, round_to="auto")


@pytest.mark.parametrize("goal", [{"ratio": 0.0}, {"macs": 1.0}])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_rounding_takes_nothing_where_nothing_is_asked_for(goal, scope):
    model = nn.Sequential(nn.Conv2d(1, 36, 1), nn.Conv2d(36, 2, 1)).eval()
    x = (images(2),)
    graph_module = copy.deepcopy(capture(model, x))
    assert not PruneChannels(scope=scope, **goal).apply(graph_module, PassContext(graph_module, x)).modified


@pytest.mark.parametrize("ranked", [False, True])
def test_every_step_of_a_ladder_is_within_the_one_before(ranked):
    given = candidates([0.3, 0.1, 0.7, 0.2], [0.5, 0.6], [0.4] * 5)
    ladder = Ladder(given, Limits(), [each.score for each in given] if ranked else None)
    kept = [sum(len(ladder.keep(s).get(each.group.name, each.score)) for each in given) for s in range(ladder.last + 1)]
    assert kept[0] == 11 and kept[-1] == 3
    assert all(low <= high for high, low in pairwise(kept))


def test_first_step():
    for first in range(6):
        assert first_step(5, lambda step, first=first: step >= first) == first
    assert first_step(5, lambda step: False) is None


@pytest.mark.parametrize(("importance", "small"), [("flat", 1), ("flat-comparable", 0)])
def test_a_global_ranking_that_compares_counts_what_a_unit_saves(importance, small):
    """Two layers of equal importance: only if scores compare is the one whose units cost more MACs pruned first."""
    if importance not in importance_names():
        register_importance(importance, comparable=small == 0)(
            lambda group: group.zeros() + 1 + small * (group.size > 8)
        )
    cheap, dear = nn.Conv2d(1, 8, 1, stride=8), nn.Conv2d(1, 9, 5, padding=2)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.cheap, self.dear, self.a, self.b = cheap, dear, nn.Linear(8, 2), nn.Linear(9, 2)

        def forward(self, x):
            return self.a(self.cheap(x).mean((2, 3))) + self.b(self.dear(x).mean((2, 3)))

    x = (images(4),)
    graph_module = copy.deepcopy(capture(Two().eval(), x))
    step = PruneChannels(macs=0.9, importance=importance, scope="global")
    pruned = step.apply(graph_module, PassContext(graph_module, x)).graph_module
    assert pruned.get_parameter("dear.weight").shape[0] == 8
    assert pruned.get_parameter("cheap.weight").shape[0] == (1 if small else 8)


@pytest.mark.parametrize(
    ("schedule", "kept"), [("linear", [54, 45, 35, 26]), ("gradual", [42, 30, 26, 26]), (None, [26])]
)
def test_rounds_follow_the_schedule_and_end_where_one_round_does(schedule, kept):
    model = nn.Sequential(nn.Conv2d(1, 64, 1), nn.Conv2d(64, 2, 1)).eval()
    x = (images(2),)
    graph_module = copy.deepcopy(capture(model, x))
    entry, context = copy.deepcopy(graph_module), PassContext(graph_module, x)
    step = PruneChannels(0.59, round_to=1, **({"rounds": 4, "schedule": schedule} if schedule else {}))
    found = []
    for number in range(step.rounds):
        result = step.apply(graph_module, replace(context, round=number, entry=entry))
        graph_module = result.graph_module
        found.append(graph_module.get_parameter("0.weight").shape[0])
    assert found == kept


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("goal", [{"macs": 0.4}, {"parameters": 0.4}, {"ratio": 0.6}])
def test_rounds_reach_the_same_share_of_the_network_as_it_entered(goal, scope):
    graph_module, context = prepared()
    entry = copy.deepcopy(graph_module)
    step = PruneChannels(**goal, scope=scope, rounds=3)
    for number in range(3):
        graph_module = step.apply(graph_module, replace(context, round=number, entry=entry)).graph_module
    once = PruneChannels(**goal, scope=scope).apply(copy.deepcopy(entry), context).graph_module
    x = context.example_inputs
    whole, small, other = (count(each, x) for each in (entry, graph_module, once))
    if "ratio" not in goal:
        (cost,) = goal
        assert getattr(small, cost) <= 0.4 * getattr(whole, cost)
    assert abs(small.macs - other.macs) < 0.1 * whole.macs


@pytest.mark.parametrize(
    "step",
    [
        PruneChannels(macs=0.5, importance="activation", scope="global", max_ratio=0.75),
        PruneChannels(bitops=0.5, importance="taylor", scope="global", compensate=True),
        PruneChannels(parameters=0.5, importance="fpgm", round_to=2),
        PruneChannels(0.3, importance="reconstruction", scope="global", rounds=2),
    ],
    ids=lambda step: step.label,
)
@pytest.mark.parametrize("name", mostly_slow(["resnet", "mobilenet"], ["resnet"]))
def test_every_way_to_prune_keeps_the_contract(name, step):
    make = small_resnet if name == "resnet" else lambda: warm(zoo.mobilenet_v2(width=0.1, in_channels=1))
    torch.manual_seed(0)
    result = check_pass(step, make(), (images(8, 16),), targets=10)
    assert result.modified and result.profile["removed"] > 0


def test_ties_are_broken_by_position_and_the_seed_decides_what_is_random():
    graph_module, context = prepared()
    for parameter in graph_module.parameters():
        parameter.data.fill_(1)
    kept = [sizes(_kept(PruneChannels(0.5, scope=scope), graph_module, context)) for scope in ("uniform", "global")]
    assert all(units == list(range(len(units))) for each in kept for units in each.values())
    first, second, other = (
        PruneChannels(macs=0.5, importance="random", scope="global")
        .apply(copy.deepcopy(graph_module), replace(context, seed=seed))
        .graph_module
        for seed in (0, 0, 1)
    )
    shapes = [[tuple(p.shape) for p in each.parameters()] for each in (first, second, other)]
    assert shapes[0] == shapes[1] != shapes[2]


def _kept(step, graph_module, context):
    """The units that a pass keeps, read from what it gives to the surgery."""
    given = {}

    def note(graph_module, analysis, keep):
        given.update(keep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chainfx.passes.prune_channels.prune", note)
        step.apply(copy.deepcopy(graph_module), context)
    return given
