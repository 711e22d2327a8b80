"""Expected, worst-case and cumulative cost of networks with exits, by hand."""

import json

import pytest
import torch
import torch.nn.functional as F

from chainfx.bitops import CostReport, ExitCost, count
from chainfx.errors import CostError
from chainfx.ir.graph import ops
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


def test_the_last_layer_is_after_all_exits_even_where_a_head_is_written_behind_it():
    def head_written_last(x, body, final, head):
        x = F.linear(x, body, None)
        answer = F.linear(x, final, None)
        return ops.exit_point(F.linear(x, head, None), "early", 0.9, "margin"), answer

    graph_module = graph_of(head_written_last, **{name: torch.zeros(4, 4) for name in ("body", "final", "head")})
    report = count(graph_module, X).reprice("hawq_v3", {"*": (4, 4)})
    assert [row.bitops for row in report.rows if row.macs] == [16 * 64, 16 * 64, 16 * 16]


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
