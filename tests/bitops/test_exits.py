"""Expected, worst-case and cumulative cost of networks with exits and with ``torch.cond``, by hand."""

import json
from operator import getitem

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from chainfx.bitops import CostReport, ExitCost, count
from chainfx.errors import CostError
from chainfx.ir import ops
from tests.bitops.graphs import graph_of

X = (torch.zeros(2, 4),)
# MACs: body 4x4, head 4x3 | body 4x5, head 5x3 | body 5x6, last layer 6x3
SEGMENTS = (16 + 12, 20 + 15, 30 + 18)


def network(x, b1, h1, b2, h2, b3, h3):
    x = F.linear(x, b1, None)
    first = ops.exit_point(F.linear(x, h1, None), "early", 0.9, "max-softmax")
    x = torch.relu(F.linear(x, b2, None))
    second = ops.exit_point(F.linear(x, h2, None), "late", 0.8, "margin")
    return first, second, F.linear(F.linear(x, b3, None), h3, None)


@pytest.fixture
def graph_module():
    shapes = {"b1": (4, 4), "h1": (3, 4), "b2": (5, 4), "h2": (3, 5), "b3": (6, 5), "h3": (3, 6)}
    return graph_of(network, **{name: torch.zeros(shape) for name, shape in shapes.items()})


def test_rows_carry_their_segment(graph_module):
    report = count(graph_module, X)
    assert [(row.macs, row.segment) for row in report.rows if row.macs] == [
        (16, 0),
        (12, 0),
        (20, 1),
        (15, 1),
        (30, 2),
        (18, 2),
    ]
    assert report.exits == ("early", "late")
    assert report.uncounted == ()


def test_worst_case_is_everything(graph_module):
    report = count(graph_module, X)
    assert report.macs == sum(SEGMENTS)
    assert report.bitops == sum(SEGMENTS) * 1024


@pytest.mark.parametrize(
    ("rates", "reached"),
    [
        ({"early": 0.5, "late": 0.25}, (1, 0.5, 0.25)),
        ({"early": 0.0, "late": 0.0}, (1, 1, 1)),
        ({"early": 1.0, "late": 0.0}, (1, 0, 0)),
        ({"late": 1, "early": 0}, (1, 1, 0)),
    ],
)
def test_expected_cost_weights_segments_by_the_share_that_reaches_them(graph_module, rates, reached):
    report = count(graph_module, X, exit_rates=rates)
    expected = sum(share * macs for share, macs in zip(reached, SEGMENTS, strict=True))
    assert report.expected_macs == expected
    assert report.expected_bitops == expected * 1024
    assert report.macs == sum(SEGMENTS)


def test_rates_that_are_not_binary_fractions(graph_module):
    report = count(graph_module, X, exit_rates={"early": 0.1, "late": 0.2})
    assert report.expected_macs == pytest.approx(28 + 0.9 * 35 + 0.7 * 48)
    sums_to_one = count(graph_module, X, exit_rates={"early": 0.7, "late": 0.3})
    assert sums_to_one.expected_macs == pytest.approx(28 + 0.3 * 35)


def test_more_exiting_never_costs_more(graph_module):
    costs = [count(graph_module, X, exit_rates={"early": r / 10, "late": 0}).expected_macs for r in range(11)]
    assert costs == sorted(costs, reverse=True)


def test_the_last_layer_is_the_one_after_all_exits(graph_module):
    graph = graph_module.graph
    for node in list(graph.find_nodes(op="call_function", target=F.linear)):
        with graph.inserting_before(node):
            node.args = (node.args[0], graph.call_function(ops.quantize_weight, (node.args[1], 4)), None)
    rows = [row for row in count(graph_module, X, "hawq_v3").rows if row.macs]
    ends = [row.macs for row in rows if row.bitops == row.macs * 64]
    assert ends == [16, 18]


@pytest.mark.parametrize(
    ("rates", "text"),
    [
        ({"early": 0.5}, "the exit rate of 'late' is missing; give the share of all samples that leaves there."),
        (
            {"early": -0.1, "late": 0.5},
            "the exit rate of 'early' is -0.1; it is a share of all samples, from 0 to 1.",
        ),
        (
            {"early": 0.1, "late": float("nan")},
            "the exit rate of 'late' is nan; it is a share of all samples, from 0 to 1.",
        ),
        (
            {"early": 0.75, "late": 0.5},
            "the exit rates add up to 1.25, above 1 from 'late' on; "
            "give shares of all samples, not of those that reach an exit.",
        ),
        (
            {"early": 0.5, "late": 0.1, "middle": 0.1},
            "exit_rates names 'middle', which is no exit of the network; its exits are early, late.",
        ),
    ],
)
def test_wrong_rates(graph_module, rates, text):
    with pytest.raises(CostError) as caught:
        count(graph_module, X, exit_rates=rates)
    assert str(caught.value) == text


@pytest.mark.parametrize("name", ["expected_macs", "expected_bitops"])
def test_no_expected_cost_without_rates(graph_module, name):
    report = count(graph_module, X)
    with pytest.raises(CostError) as caught:
        getattr(report, name)
    assert str(caught.value) == (
        "the expected cost needs the exit rate of 'early', which nobody measured; "
        "give exit_rates with the share of all samples that leaves there, or ask for the worst case."
    )


# what a sample costs that leaves at an exit


def test_cumulative_cost_is_that_of_all_bodies_and_heads_up_to_the_exit(graph_module):
    first, second, third = SEGMENTS
    assert count(graph_module, X).cumulative == (
        ExitCost("early", first, first * 1024),
        ExitCost("late", first + second, (first + second) * 1024),
        ExitCost(None, first + second + third, (first + second + third) * 1024),
    )


def test_the_expected_cost_is_the_mean_of_the_cumulative_ones(graph_module):
    report = count(graph_module, X, "uniq_bops", {"early": 0.5, "late": 0.125})
    shares = (0.5, 0.125, 0.375)
    for column in ("macs", "bitops"):
        mean = sum(share * getattr(cost, column) for share, cost in zip(shares, report.cumulative, strict=True))
        assert getattr(report, f"expected_{column}") == pytest.approx(mean, rel=1e-12)
    assert report.to_dict()["cumulative"][1] == {
        "exit": "late",
        "macs": report.cumulative[1].macs,
        "bitops": report.cumulative[1].bitops,
    }


def test_a_network_without_exits_has_one_cost(graph_module):
    report = count(graph_of(one_relu), X)
    assert report.cumulative == (ExitCost(None, 0, 0),)


def one_relu(x):
    return torch.relu(x)


def test_rates_for_a_network_without_exits():
    plain = graph_of(one_relu)
    assert count(plain, X, exit_rates={}).expected_macs == 0
    with pytest.raises(CostError) as caught:
        count(plain, X, exit_rates={"early": 0.5})
    assert str(caught.value) == "exit_rates names 'early', which is no exit of the network; it has no exits."


def test_json_and_text(graph_module):
    report = count(graph_module, X, exit_rates={"early": 0.5, "late": 0.25})
    assert CostReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert str(report).splitlines()[-3:] == [
        "MACs 111, BitOps 113,664, element-wise 5 (worst case)",
        "expected: MACs 58, BitOps 58,880 (leaving: early 50.0%, late 25.0%)",
        "storage 3,552 bits (0.000 MB), parameters 111",
    ]
    unknown = str(count(graph_module, X))
    assert "expected: unknown, nobody measured the rates of early, late" in unknown


# torch.cond


class Conditional(nn.Module):
    """A body of 64 MACs; then 128 MACs, or 64 MACs and again 128 or 256; then 16 MACs."""

    def __init__(self):
        super().__init__()
        sizes = {"body": (8, 8), "cheap": (8, 16), "inner": (8, 8), "left": (8, 16), "right": (8, 32), "end": (16, 1)}
        self.layers = nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})

    def forward(self, x):
        layers = self.layers
        x = layers["body"](x)
        return layers["end"](torch.cond(x.mean() > 0, layers["cheap"], self.dear, (x,)))

    def dear(self, x):
        layers = self.layers
        x = layers["inner"](x)
        return torch.cond(x.sum() > 1, layers["left"], lambda x: layers["right"](x)[:, :16] + 0, (x,))


SAMPLE = (torch.zeros(1, 8),)
NESTED = "cond.false.cond"


@pytest.fixture(scope="module")
def conditional():
    return exported(Conditional())


def exported(model):
    with torch.no_grad():
        return torch.export.export(model.eval(), SAMPLE).module(check_guards=False)


def test_rows_carry_their_branch(conditional):
    report = count(conditional, SAMPLE)
    assert report.conditions == ("cond", NESTED)
    assert report.uncounted == ()
    assert [(row.module, row.macs, row.branch) for row in report.rows if row.macs] == [
        ("layers.body", 64, ""),
        ("cond.true.layers.cheap", 128, "cond.true"),
        ("cond.false.layers.inner", 64, "cond.false"),
        ("cond.false.cond.true.layers.left", 128, "cond.false.cond.true"),
        ("cond.false.cond.false.layers.right", 256, "cond.false.cond.false"),
        ("layers.end", 16, ""),
    ]


def test_the_worst_case_takes_the_dearest_branches(conditional):
    report = count(conditional, SAMPLE)
    assert report.macs == 64 + (64 + 256) + 16
    assert report.bitops == report.macs * 1024
    predicates = (8 + 1) + (8 + 1)  # a mean or a sum of 8 elements, and a comparison
    assert report.elementwise == predicates + 16  # and the addition behind the dearest layer
    assert report.cumulative == (ExitCost(None, report.macs, report.bitops),)


def test_the_dearest_branch_is_that_of_the_bits(conditional):
    report = count(conditional, SAMPLE, "strict").reprice(widths={"cond.false.cond.false.*": (1, 1)})
    assert report.macs == 64 + (64 + 256) + 16
    assert report.bitops == 1024 * (64 + (64 + 128) + 16)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"cond": 1.0, NESTED: 0.0}, 64 + 128 + 16),
        ({"cond": 0.0, NESTED: 1.0}, 64 + (64 + 128) + 16),
        ({"cond": 0.0, NESTED: 0.0}, 64 + (64 + 256) + 16),
        ({"cond": 0.5, NESTED: 0.25}, 64 + 0.5 * 128 + 0.5 * 64 + 0.25 * 128 + 0.25 * 256 + 16),
        ({"cond": 0.25, NESTED: 0.75}, 64 + 0.25 * 128 + 0.75 * (64 + 128) + 16),
    ],
)
def test_the_expected_cost_weights_branches_by_the_share_of_all_samples(conditional, rates, expected):
    report = count(conditional, SAMPLE, exit_rates=rates)
    assert report.expected_macs == expected
    assert report.expected_bitops == expected * 1024
    assert count(conditional, SAMPLE).reprice(exit_rates=rates) == report


def test_branches_survive_json(conditional):
    report = count(conditional, SAMPLE, exit_rates={"cond": 0.5, NESTED: 0.25})
    assert CostReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_weights_of_branches_are_stored(conditional):
    report = count(conditional, SAMPLE)
    assert report.parameters == sum(parameter.numel() for parameter in Conditional().parameters())
    assert report.storage_bits == report.parameters * 32


def test_torchs_own_counter_adds_the_branches():
    """Worst case 64 + 128 = 192 MACs, that is 384 FLOPs; torch says 512 (torch-facts.md, Counting)."""
    first, second = nn.Linear(8, 8, bias=False), nn.Linear(8, 16, bias=False)

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x):
            x = self.first(x)
            return torch.cond(x.sum() > 0, self.first, lambda x: self.second(x)[:, :8] + 0, (x,))

    graph_module = exported(Small().requires_grad_(False))
    with FlopCounterMode(display=False) as torchs:
        graph_module(*SAMPLE)
    assert torchs.get_total_flops() == 2 * (64 + 64 + 128) == 512
    assert count(graph_module, SAMPLE).macs * 2 == 384


def after_exit(pred, x, body, head, dear):
    x = F.linear(x, body, None)
    logits = ops.exit_point(F.linear(x, head, None), "early", 0.9, "margin")
    return logits, either_way(pred, x, dear)


@torch.fx.wrap
def either_way(pred, x, dear):
    return F.linear(x, dear, None) if pred else x


def with_condition_behind_an_exit():
    """40 MACs with the exit's head, and then a condition whose true branch has 16 MACs and whose false one has none."""
    graph_module = graph_of(after_exit, body=torch.zeros(4, 4), head=torch.zeros(6, 4), dear=torch.zeros(4, 4))
    branches = nn.Module()
    branches.dear_branch = torch.fx.symbolic_trace(lambda x, dear: (F.linear(x, dear, None),))
    branches.no_branch = torch.fx.symbolic_trace(lambda x, dear: (torch.clone(x),))
    for name, branch in branches.named_children():
        graph_module.add_module(name, branch)
    graph = graph_module.graph
    (old,) = graph.find_nodes(op="call_function", target=either_way)
    with graph.inserting_before(old):
        predicate, *operands = old.args
        sides = [graph.create_node("get_attr", name) for name in ("dear_branch", "no_branch")]
        both = graph.call_function(torch.ops.higher_order.cond, (predicate, *sides, tuple(operands)), name="choice")
        result = graph.create_node("call_function", getitem, (both, 0))
    old.replace_all_uses_with(result)
    graph.erase_node(old)
    graph_module.recompile()
    return graph_module


def test_a_condition_behind_an_exit():
    graph_module, inputs = with_condition_behind_an_exit(), (torch.tensor([True]), torch.zeros(1, 4))
    report = count(graph_module, inputs)
    assert [cost.macs for cost in report.cumulative] == [40, 56]
    rates = {"early": 0.5, "choice": 0.25}
    assert count(graph_module, inputs, exit_rates=rates).expected_macs == 40 + 0.25 * 16
    assert count(graph_module, inputs, exit_rates={"early": 0.5, "choice": 0.5}).expected_macs == 40 + 0.5 * 16


@pytest.mark.parametrize(
    ("rates", "text"),
    [
        (
            {"cond": 0.5},
            f"the exit rate of {NESTED!r} is missing; give the share of all samples that takes its true branch.",
        ),
        (
            {"cond": 1.5, NESTED: 0.0},
            "the exit rate of 'cond' is 1.5; it is a share of all samples, from 0 to 1.",
        ),
        (
            {"cond": 0.5, NESTED: 0.75},
            f"the exit rate of {NESTED!r} is 0.75, but only 0.5 of all samples get there; "
            "give shares of all samples, not of those that get there.",
        ),
        (
            {"cond": 0.5, NESTED: 0.5, "exit1": 0.1},
            f"exit_rates names 'exit1', which is no exit of the network; its exits are cond, {NESTED}.",
        ),
    ],
)
def test_wrong_rates_of_branches(conditional, rates, text):
    with pytest.raises(CostError) as caught:
        count(conditional, SAMPLE, exit_rates=rates)
    assert str(caught.value) == text


@pytest.mark.parametrize("name", ["expected_macs", "expected_bitops"])
def test_no_expected_cost_of_branches_without_rates(conditional, name):
    report = count(conditional, SAMPLE)
    with pytest.raises(CostError) as caught:
        getattr(report, name)
    assert str(caught.value) == (
        "the expected cost needs the exit rate of 'cond', which nobody measured; "
        "give exit_rates with the share of all samples that takes its true branch, or ask for the worst case."
    )
    assert report.to_dict()["totals"][name] is None


def test_a_branch_that_is_not_in_the_graph():
    graph = torch.fx.Graph()
    x, given = graph.placeholder("x"), graph.placeholder("given")
    graph.output(graph.call_function(torch.ops.higher_order.cond, (x, given, given, (x,))))
    with pytest.raises(CostError) as caught:
        count(torch.fx.GraphModule(nn.Module(), graph), SAMPLE)
    assert str(caught.value) == (
        "node 'cond' has a branch that is no graph of the network, given; count a graph made by torch.export."
    )
