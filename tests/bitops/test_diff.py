"""What a diff of two reports says about every pass, and that its parts add up."""

import csv
import io
import json
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
import torch

import chainfx
from chainfx.bitops import count
from chainfx.bitops.diff import CostDiff
from chainfx.errors import CostError
from chainfx.passes import Distill, EarlyExit, Fuse, PruneChannels, Quantize
from tests.bitops.graphs import linear_report
from tests.nets import images, small_resnet
from tests.trainers import FakeTrainer

PASSES = {
    "distill": Distill(depth=0.5),
    "prune-channels": PruneChannels(0.5),
    "fuse": Fuse(),
    "quantize": Quantize(weights=4, activations=8),
    "early-exit": EarlyExit(exits=1, threshold=0.5, keep=True),
}
X = (torch.zeros(1, 1, 8, 8),)


@pytest.fixture(scope="module")
def graphs():
    """The graph before and after each pass, one after the other."""
    stages = []
    x = images()
    chainfx.compile(
        small_resnet((3, 2)),
        list(PASSES.values()),
        example_inputs=x,
        trainer=FakeTrainer(x),
        order="given",
        on_stage=stages.append,
    )
    found = [stage.graph_module for stage in stages]
    return dict(zip(PASSES, pairwise(found), strict=True))


def diff_by(graphs, name, convention="strict") -> CostDiff:
    before, after = (count(graph_module, X, convention) for graph_module in graphs[name])
    return before.diff(after)


def kinds(diff):
    return {change.node: change.kind for change in diff.changes}


def saved(diff, what):
    return sum((getattr(change, what) for change in diff.changes), start=Fraction(0))


@pytest.mark.parametrize("convention", ["mac_bw_ba", "strict", "uniq_bops"])
@pytest.mark.parametrize("name", PASSES)
def test_what_the_nodes_save_adds_up_to_the_difference_of_the_totals(graphs, name, convention):
    diff = diff_by(graphs, name, convention)
    exact = [sum((row.bitops for row in report.rows), start=Fraction(0)) for report in (diff.before, diff.after)]
    assert saved(diff, "saved_bitops") == exact[0] - exact[1]
    assert saved(diff, "saved_macs") == diff.before.macs - diff.after.macs
    costs = [change.saved_bitops for change in diff.changes]
    assert costs == sorted(costs, reverse=True)
    for side in ("before", "after"):
        rows = [getattr(change, side) for change in diff.changes if getattr(change, side) is not None]
        assert sorted(row.node for row in rows) == sorted(row.node for row in getattr(diff, side).rows)


def test_distill_removes_the_nodes_of_blocks(graphs):
    diff = diff_by(graphs, "distill")
    removed = [node for node, kind in kinds(diff).items() if kind == "removed"]
    assert {"stages_0_2_conv1", "stages_0_2_conv2"} <= set(removed)
    assert set(kinds(diff).values()) == {"removed", "same"}


def test_prune_changes_macs_and_weights_but_not_widths(graphs):
    diff = diff_by(graphs, "prune-channels")
    (conv,) = (change for change in diff.changes if change.node == "stages_0_0_conv1")
    assert (conv.kind, conv.before.weight_elements, conv.after.weight_elements) == ("changed", 144, 36)
    assert (conv.saved_weights, conv.ratio) == (108, 4.0)
    assert (conv.before.weight_bits, conv.after.weight_bits) == (32, 32)
    assert "added" not in kinds(diff).values()


def test_quantize_changes_widths_but_not_macs(graphs):
    diff = diff_by(graphs, "quantize")
    (conv,) = (change for change in diff.changes if change.node == "stages_0_0_conv1")
    assert (conv.saved_macs, conv.saved_weights, conv.ratio) == (0, 0, 32.0)
    assert saved(diff, "saved_macs") == 0 < saved(diff, "saved_bitops")
    assert all(change.operator == "quantize_activation" for change in diff.changes if change.kind == "added")


def test_exit_heads_are_added_and_nothing_else_changes(graphs):
    diff = diff_by(graphs, "early-exit")
    assert set(kinds(diff).values()) == {"added", "same"}
    assert saved(diff, "saved_macs") < 0
    assert "expected BitOps: unknown (the expected cost needs the exit rate of 'exit1'" in str(diff)
    measured = replace(diff.after, exit_rates=(0.5,))
    expected = f"expected BitOps {diff.before.bitops:,} -> {measured.expected_bitops:,}"
    assert any(line.startswith(expected) for line in str(diff.before.diff(measured)).splitlines())


def test_fuse_removes_norms_without_bit_operations(graphs):
    diff = diff_by(graphs, "fuse")
    removed = [change for change in diff.changes if change.kind == "removed"]
    assert removed and {change.operator for change in removed} == {"BatchNorm2d"}
    assert saved(diff, "saved_bitops") == 0


def test_the_deploy_form_differs_in_no_cost_and_knows_its_modules(graphs):
    compressed = chainfx.compile(
        small_resnet((1,)), [Quantize(weights=4)], example_inputs=images(), calibration=[images()]
    )
    lowered = chainfx.count(compressed, X, "strict")
    assert {row.module for row in lowered.rows if row.macs} == {"conv1", "stages.0.0.conv1", "stages.0.0.conv2", "fc"}
    original = chainfx.count(small_resnet((1,)), X, "strict")
    assert {change.node for change in original.diff(lowered).changed if change.saved_bitops} == {
        row.node for row in lowered.rows if row.macs
    }


@pytest.mark.parametrize(
    ("before", "after", "pairs"),
    [
        ([("a", "m"), ("b", "n")], [("a", "m"), ("b", "n")], {"a": "a", "b": "b"}),
        ([("a", "m"), ("b", "n")], [("b", "m"), ("a", "n")], {"a": "b", "b": "a"}),  # names moved, modules did not
        ([("a", "m")], [("a", "")], {"a": "a"}),
        ([("a", ""), ("b", "")], [("b", ""), ("c", "")], {"a": None, "b": "b"}),
        ([("a", "m"), ("b", "m")], [("c", "m"), ("d", "m")], {"a": "c", "b": "d"}),  # a module that runs twice
        ([("a", "m"), ("b", "m")], [("b", "m")], {"a": None, "b": "b"}),
    ],
)
def test_nodes_are_matched_by_name_and_module_then_module_then_name(before, after, pairs):
    diff = linear_report(*before).diff(linear_report(*after))
    found = {change.before.node: change.after and change.after.node for change in diff.changes if change.before}
    assert found == pairs
    taken = set(pairs.values())
    assert {change.node for change in diff.changes if change.kind == "added"} == {n for n, _ in after} - taken


def test_a_report_differs_from_itself_in_nothing(graphs):
    report = count(graphs["fuse"][0], X)
    diff = report.diff(report)
    assert (diff.changed, {change.kind for change in diff.changes}) == ((), {"same"})


def test_other_widths_are_a_change_even_where_the_convention_is_blind_to_them():
    names = [(name, "") for name in "abc"]
    before = linear_report(*names).reprice("mac_bw_ba", {"*": (4, 8)})
    diff = before.diff(before.reprice(widths={"a": (8, 8)}))
    assert kinds(diff) == {"a": "changed", "b": "same", "c": "same"}
    assert saved(diff, "saved_bitops") == 0


def test_csv_and_json_hold_all_that_changed(graphs):
    diff = diff_by(graphs, "prune-channels")
    lines = list(csv.DictReader(io.StringIO(diff.to_csv())))
    assert [line["node"] for line in lines] == [change.node for change in diff.changed]
    macs = [int(line["macs_before"] or 0) - int(line["macs_after"] or 0) for line in lines]
    assert macs == [change.saved_macs for change in diff.changed]
    plain = json.loads(json.dumps(diff.to_dict()))
    assert [item["saved_macs"] for item in plain["changed"]] == macs
    assert chainfx.CostReport.from_dict(plain["after"]) == diff.after


def test_different_conventions(graphs):
    report = count(graphs["fuse"][0], X)
    with pytest.raises(CostError) as caught:
        report.diff(report.reprice("strict"))
    assert str(caught.value) == (
        "the reports are under different conventions, 'mac_bw_ba' and 'strict'; count both under one."
    )


def test_different_inputs_but_the_batch_does_not_matter(graphs):
    shapes = ((1, 1, 8, 8), (1, 1, 16, 16), (5, 1, 8, 8))
    small, large, batch = (count(graphs["fuse"][0], (torch.zeros(shape),)) for shape in shapes)
    assert small.diff(batch).changed == ()
    with pytest.raises(CostError) as caught:
        small.diff(large)
    assert str(caught.value) == (
        "the reports are for different inputs, 1x1x8x8 and 1x1x16x16; count both with one shape."
    )


def test_one_channel_more_is_another_input():
    report = linear_report(("a", ""))
    with pytest.raises(CostError, match="for different inputs, 1x4 and 1x5;"):
        report.diff(replace(report, inputs=((1, 5),)))
