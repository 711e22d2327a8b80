"""The tree of a cost report and the text made of it."""

import csv
import io
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import symbolic_trace

from chainfx.bitops import count
from chainfx.errors import InputError
from chainfx.ir.capture.ways import capture
from chainfx.ir.graph import ops
from chainfx.report.table import render
from chainfx.report.tree import fitting_depth, tree_of
from chainfx.zoo import resnet
from tests.bitops.graphs import graph_of

COSTS = ("macs", "nonzero_macs", "elementwise", "bitops")


def report_of(model, *sizes, **options):
    inputs = (torch.zeros(sizes, device="meta"),)
    return count(capture(model.eval(), inputs), inputs, **options)


@pytest.fixture(scope="module")
def report():
    with torch.device("meta"):
        return report_of(resnet((2, 1), width=4), 1, 3, 8, 8, convention="uniq_bops")


def below(branch, *names):
    for name in names:
        (branch,) = (child for child in branch.children if child.name == name)
    return branch


def rows_of(branch):
    return [branch.row] if branch.row else [row for child in branch.children for row in rows_of(child)]


def everything(branch):
    return [branch, *(found for child in branch.children for found in everything(child))]


def names_of(branch):
    return [child.name for child in branch.children]


def body_of(text):
    """The first cell of every line between the rule and the blank line, with its indent."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if "───" in line) + 1
    return [line[1:].split("   ")[0] if line[1] != " " else line[1:] for line in lines[start : lines.index("", start)]]


# the tree


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


# the text


def test_depth_0_is_the_totals_alone_and_a_large_one_unfolds_everything(report):
    assert render(report, depth=0).splitlines() == [
        "cost of one sample, convention uniq_bops (1 MAC = 2 FLOPs)",
        f"MACs {report.macs:,}, BitOps {float(report.bitops):,.1f}, element-wise {report.elementwise:,}",
        f"storage {report.storage_bits:,} bits (0.007 MB), parameters {report.parameters:,}",
    ]
    assert len(body_of(render(report, depth=99))) == len(everything(tree_of(report))) - 1
    assert len(body_of(render(report, depth=1))) == 6
    folded = next(line for line in render(report, depth=1).splitlines() if line.startswith(" stages"))
    assert folded.split()[:3] == ["stages", "23", "nodes"]
    assert "nodes" not in render(report, depth=99)


def test_a_large_network_stays_readable():
    with torch.device("meta"):
        report = report_of(resnet((16, 16, 16), width=4), 1, 3, 8, 8)
    assert len(report.rows) > 300
    assert len(str(report).splitlines()) < 50
    assert len(body_of(render(report, flat=True))) == len(report.rows)


def test_flat_is_one_line_a_node_under_its_own_name(report):
    shown = [line.split()[0] for line in body_of(render(report, flat=True))]
    assert shown == [row.node for row in report.rows]
    dearest = body_of(render(report, flat=True, sort="macs"))[0].split()[0]
    assert dearest == max(report.rows, key=lambda row: row.macs).node


def test_no_line_is_wider_than_120_columns(report):
    assert max(map(len, render(report, depth=99).splitlines())) <= 120


def test_zeros_have_a_column_and_encodings_a_line():
    def network(x, weight, mask):
        return F.linear(x, ops.mask_weight(weight, mask, "unstructured"), None)

    graph_module = graph_of(network, weight=torch.zeros(4, 8), mask=torch.arange(32).reshape(4, 8) % 4 == 0)
    report = count(graph_module, (torch.zeros(1, 8),), encodings=("bitmap",))
    lines = render(report).splitlines()
    assert lines[2].split()[-1] == "nonzero" and lines[4].split()[-1] == "25.0%"
    assert "MACs 32 (8 nonzero), BitOps 32,768, element-wise 0" in lines
    assert lines[-1] == f"storage encoded as bitmap: {32 + 8 * 32} bits"


def test_exits_have_their_segment_and_their_cost():
    def network(x, body, head, last):
        x = F.linear(x, body, None)
        return ops.exit_point(F.linear(x, head, None), "early", 0.9, "max-softmax"), F.linear(x, last, None)

    shapes = {"body": (4, 4), "head": (3, 4), "last": (3, 4)}
    graph_module = graph_of(network, **{name: torch.zeros(shape) for name, shape in shapes.items()})
    lines = render(count(graph_module, (torch.zeros(1, 4),), exit_rates={"early": 0.25})).splitlines()
    assert [line.split()[-1] for line in lines[4:6]] == ["0", "0"]
    assert lines[-4:] == [
        "up to early: MACs 28, BitOps 28,672",
        "MACs 40, BitOps 40,960, element-wise 0 (worst case)",
        "expected: MACs 37, BitOps 37,888 (leaving: early 25.0%)",
        "storage 1,280 bits (0.000 MB), parameters 40",
    ]


@pytest.mark.parametrize("depth", [-1, 1.5, "2", True])
def test_wrong_depth(report, depth):
    with pytest.raises(InputError) as caught:
        render(report, depth=depth)
    assert str(caught.value) == (f"depth={depth!r} is not a whole number from 0; give the number of levels to unfold.")


def test_wrong_sort(report):
    with pytest.raises(InputError) as caught:
        render(report, sort="size")
    assert str(caught.value) == "sort='size' is not known; use 'order', 'macs', 'bitops'."


# comma-separated values


def test_csv_has_one_line_a_node_with_the_same_numbers(report):
    lines = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [line["node"] for line in lines] == [row.node for row in report.rows]
    for line, row in zip(lines, report.rows, strict=True):
        assert (int(line["macs"]), int(line["elementwise"])) == (row.macs, row.elementwise)
        assert float(line["bitops"]) == float(row.bitops)
        assert line["weight_bits"] == ("" if row.weight_bits is None else str(row.weight_bits))
        assert line["output"].split("x") == [str(size) for size in row.shape]
        assert line["convention"] == "uniq_bops"


@torch.fx.wrap
def secret(x):
    return torch.fft.fft(x)


def test_csv_lists_what_nobody_could_count():
    report = count(symbolic_trace(lambda x: secret(x) + 0), (torch.zeros(1, 4),))
    *_, line = csv.DictReader(io.StringIO(report.to_csv()))
    assert (line["node"], line["macs"], line["not_counted"]) == ("secret", "", report.uncounted[0].reason)
