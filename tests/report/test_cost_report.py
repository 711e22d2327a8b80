"""The text of a cost report."""

import pytest
import torch
import torch.nn.functional as F

from chainfx.bitops import count
from chainfx.errors import InputError
from chainfx.ir.graph import ops
from chainfx.report.cost_report import render
from chainfx.report.cost_tree import tree_of
from tests.bitops.graphs import graph_of
from tests.report.values import everything, resnet_report


@pytest.fixture(scope="module")
def report():
    return resnet_report()


def body_of(text):
    """The first cell of every line between the rule and the blank line, with its indent."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if "───" in line) + 1
    return [line[1:].split("   ")[0] if line[1] != " " else line[1:] for line in lines[start : lines.index("", start)]]


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
    report = resnet_report((16, 16, 16))
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
