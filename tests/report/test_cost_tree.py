"""The rows of a cost report as a tree by module path."""

from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

from chainfx.bitops import count
from chainfx.report.cost_report import render
from chainfx.report.cost_tree import fitting_depth, tree_of
from tests.report.values import everything, report_of, resnet_report

COSTS = ("macs", "nonzero_macs", "elementwise", "bitops")


@pytest.fixture(scope="module")
def report():
    return resnet_report()


def below(branch, *names):
    for name in names:
        (branch,) = (child for child in branch.children if child.name == name)
    return branch


def rows_of(branch):
    return [branch.row] if branch.row else [row for child in branch.children for row in rows_of(child)]


def names_of(branch):
    return [child.name for child in branch.children]


def test_every_row_is_in_the_tree_once_and_every_total_is_the_sum_of_what_is_inside(report):
    root = tree_of(report)
    assert sorted(row.node for row in rows_of(root)) == sorted(row.node for row in report.rows)
    for branch in everything(root):
        inside = rows_of(branch)
        assert branch.nodes == len(inside)
        for cost in COSTS:
            assert getattr(branch, cost) == sum((getattr(row, cost) for row in inside), start=Fraction(0))
    assert (root.macs, root.elementwise) == (report.macs, report.elementwise)


def test_modules_come_as_they_run_and_single_nodes_under_their_modules_name(report):
    root = tree_of(report)
    assert names_of(root) == ["conv1", "bn1", "relu", "stages", "pool", "fc"]
    assert names_of(below(root, "stages", "0", "0")) == ["conv1", "bn1", "relu1", "conv2", "bn2", "add", "relu2"]
    assert below(root, "stages", "0", "0", "conv1").row.node == "stages_0_0_conv1"


def test_a_node_without_a_module_is_in_the_innermost_module_around_its_neighbours():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x))) + 1

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(Block(), Block())
            self.out = nn.Linear(4, 4)

        def forward(self, x):
            return self.out(torch.sigmoid(self.blocks(torch.relu(x))))

    graph_module = symbolic_trace(Network())
    for node in graph_module.graph.nodes:
        node.meta.clear()  # as after loading a saved network
    root = tree_of(count(graph_module, (torch.zeros(1, 4),)))
    assert names_of(root) == ["relu", "blocks", "add_1", "sigmoid", "out"]
    assert names_of(below(root, "blocks")) == ["0", "add", "1"]
    assert names_of(below(root, "blocks", "1")) == ["first", "tanh_1", "second"]


def test_a_node_between_two_calls_of_a_module_is_beside_it():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.act(x) + 1)

    graph_module = symbolic_trace(nn.Sequential(Twice(), nn.ReLU()))
    for node in graph_module.graph.nodes:
        node.meta.clear()
    root = tree_of(count(graph_module, (torch.zeros(1, 4),)))
    assert names_of(root) == ["0", "1"]
    assert names_of(below(root, "0")) == ["act", "add"]


def test_a_module_that_runs_twice_holds_both_of_its_nodes():
    layer = nn.Linear(4, 4)
    network = nn.Sequential(nn.Sequential(layer, nn.ReLU(), layer), nn.Flatten())
    root = tree_of(count(symbolic_trace(network), (torch.zeros(1, 4),)))
    assert names_of(root) == ["0"]
    shared = below(root, "0", "0")
    assert (len(shared.children), shared.nodes, shared.macs) == (2, 2, 32)


def test_a_module_with_nothing_but_a_module_inside_is_one_line():
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    root = tree_of(report_of(nn.Sequential(nn.Sequential(nn.Sequential(inner)), nn.ReLU()), 1, 4))
    assert names_of(root) == ["0.0.0", "1"]
    assert names_of(below(root, "0.0.0")) == ["0", "1"]


@pytest.mark.parametrize("sort", ["macs", "bitops"])
def test_sorting_is_within_every_module(report, sort):
    for branch in everything(tree_of(report, sort)):
        costs = [getattr(child, sort) for child in branch.children]
        assert costs == sorted(costs, reverse=True)
    assert names_of(tree_of(report, sort))[0] == "stages"


def test_of_a_cond_the_dearest_branch_counts():
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.small, self.large = nn.Linear(8, 4), nn.Linear(8, 4)
            self.more = nn.Linear(4, 4)

        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: self.small(x) * 1, lambda x: self.more(self.large(x)), (x,))

    inputs = (torch.zeros(1, 8),)
    report = count(torch.export.export(Either(), inputs).module(), inputs)
    root = tree_of(report)
    assert below(root, "cond").macs == root.macs == report.macs == 48
    text = render(report)
    assert "MACs 48, BitOps 49,152" in text and "expected: unknown, nobody measured the rates of cond" in text
    assert "(true: cond 50.0%)" in render(report.reprice(exit_rates={"cond": 0.5}))


def test_the_depth_that_fits(report):
    root = tree_of(report)
    sizes = [sum(1 for _ in root.walk(depth)) for depth in range(1, 5)]
    assert sizes == sorted(set(sizes))
    for lines, depth in ((1, 1), (sizes[0], 1), (sizes[1] - 1, 1), (sizes[1], 2), (sizes[3], 4), (10**6, 4)):
        assert fitting_depth(root, lines) == depth
