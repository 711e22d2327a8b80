"""Expected and worst-case cost of the branches of ``torch.cond``, by hand."""

import json
from operator import getitem

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import chainfx
from chainfx.bitops import CostReport, ExitCost, count
from chainfx.errors import CaptureError, CostError
from chainfx.ir.graph import ops
from tests.bitops.graphs import graph_of


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


def test_a_model_with_branches_counts_as_what_torch_exports(conditional):
    model = Conditional()
    assert chainfx.count(model, SAMPLE) == count(conditional, SAMPLE)
    model = model.to("meta").train()
    assert chainfx.count(model, SAMPLE[0].to("meta")) == count(conditional, SAMPLE) and model.training


def test_the_guards_of_an_exported_graph_are_no_rows(conditional):
    with torch.no_grad():
        guarded = torch.export.export(Conditional().eval(), SAMPLE).module()
    assert guarded.graph.find_nodes(op="call_module") and count(guarded, SAMPLE).rows == count(conditional, SAMPLE).rows


def test_a_branch_on_data_that_torch_cannot_export_is_an_error():
    class Branch(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(CaptureError, match=r"needs a value that only the data give; replace the branch by"):
        chainfx.count(Branch(), SAMPLE)


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


@torch.fx.wrap
def either_way(pred, x, dear):
    return F.linear(x, dear, None) if pred else x


def after_exit(pred, x, body, head, dear):
    x = F.linear(x, body, None)
    logits = ops.exit_point(F.linear(x, head, None), "early", 0.9, "margin")
    return logits, either_way(pred, x, dear)


def before_exit(x, gate, head, dear, last):
    x = either_way(F.linear(x, gate, None) > 0, x, dear)
    logits = ops.exit_point(F.linear(x, head, None), "early", 0.9, "margin")
    return logits, F.linear(x, last, None)


def with_condition(network, *, in_tuples, **tensors):
    """The graph of a network with a condition for ``either_way``: 16 MACs in the true branch, none in the other."""
    graph_module = graph_of(network, **tensors)
    packed = (lambda x: (x,)) if in_tuples else (lambda x: x)
    graph_module.dear_branch = torch.fx.symbolic_trace(lambda x, dear: packed(F.linear(x, dear, None)))
    graph_module.no_branch = torch.fx.symbolic_trace(lambda x, dear: packed(torch.clone(x)))
    graph = graph_module.graph
    (old,) = graph.find_nodes(op="call_function", target=either_way)
    with graph.inserting_before(old):
        predicate, *operands = old.args
        sides = [graph.create_node("get_attr", name) for name in ("dear_branch", "no_branch")]
        result = graph.call_function(torch.ops.higher_order.cond, (predicate, *sides, tuple(operands)), name="choice")
        if in_tuples:
            result = graph.call_function(getitem, (result, 0))
    old.replace_all_uses_with(result)
    graph.erase_node(old)
    graph_module.recompile()
    return graph_module


@pytest.mark.parametrize("in_tuples", [True, False])
def test_a_condition_behind_an_exit(in_tuples):
    shapes = {"body": (4, 4), "head": (6, 4), "dear": (4, 4)}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    graph_module = with_condition(after_exit, in_tuples=in_tuples, **tensors)
    inputs = (torch.tensor([True]), torch.zeros(1, 4))
    assert [cost.macs for cost in count(graph_module, inputs).cumulative] == [40, 56]
    for taken in (0.25, 0.5):
        report = count(graph_module, inputs, exit_rates={"early": 0.5, "choice": taken})
        assert report.expected_macs == 40 + taken * 16


@pytest.mark.parametrize("in_tuples", [True, False])
def test_a_condition_before_an_exit_belongs_to_it_with_its_predicate(in_tuples):
    shapes = {"gate": (1, 4), "head": (6, 4), "dear": (4, 4), "last": (8, 4)}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    graph_module = with_condition(before_exit, in_tuples=in_tuples, **tensors)
    report = count(graph_module, (torch.zeros(1, 4),), exit_rates={"early": 0.5, "choice": 0.25})
    assert [(row.macs, row.segment) for row in report.rows if row.macs] == [(4, 0), (16, 0), (24, 0), (32, 1)]
    assert report.expected_macs == 4 + 0.25 * 16 + 24 + 0.5 * 32


@pytest.mark.parametrize("bits", [(4, 6), (6, 4)])
def test_what_comes_out_of_a_condition_has_the_wider_format_of_its_branches(bits):
    def branch(width):
        return torch.fx.symbolic_trace(lambda x, clip: ops.quantize_activation(x, clip, width, True))

    graph = torch.fx.Graph()
    x, predicate, clip = (graph.placeholder(name) for name in ("x", "predicate", "clip"))
    sides = [graph.create_node("get_attr", name) for name in ("true_branch", "false_branch")]
    choice = graph.call_function(torch.ops.higher_order.cond, (predicate, *sides, (x, clip)))
    graph.output(graph.call_function(torch.matmul, (choice, x)))
    root = nn.Module()
    root.true_branch, root.false_branch = (branch(width) for width in bits)
    report = count(torch.fx.GraphModule(root, graph), (torch.zeros(1, 4, 4), torch.tensor([True]), torch.ones(())))
    (row,) = (row for row in report.rows if row.macs)
    assert (row.activation_bits, row.weight_bits) == (6, 32)


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
