"""The text of a cost diff."""

from dataclasses import replace

from chainfx.bitops import Uncounted
from tests.bitops.graphs import linear_report
from tests.report.values import resnet_report


def test_the_nodes_that_changed_and_the_totals():
    before = linear_report(("a", "first"))
    after = linear_report(("a", "first"), ("b", "second")).reprice(widths={"*": (4, 8)})
    assert str(before.diff(after)).splitlines() == [
        "what changed for one sample, convention mac_bw_ba (1 MAC = 2 FLOPs)",
        "",
        " node   change    w x a           MACs   weights          BitOps    saved   ratio",
        " ────────────────────────────────────────────────────────────────────────────────",
        " a      changed   32x32 -> 4x8      16        16   16.38k -> 512   15.87k   32.0x",
        " b      added     -> 4x8         -> 16     -> 16          -> 512     -512",
        "",
        "nodes: 0 removed, 1 changed, 1 added, 0 same",
        "MACs 16 -> 32 (2.00x more)",
        "BitOps 16,384 -> 1,024 (16.00x less)",
        "element-wise 0 -> 0",
        "parameters 16 -> 16",
        "storage bits 512 -> 64 (8.00x less)",
    ]


def test_equal_reports_have_no_table():
    report = linear_report(("a", ""))
    assert str(report.diff(report)).splitlines() == [
        "what changed for one sample, convention mac_bw_ba (1 MAC = 2 FLOPs)",
        "nodes: 0 removed, 0 changed, 0 added, 1 same",
        "MACs 16 -> 16",
        "BitOps 16,384 -> 16,384",
        "element-wise 0 -> 0",
        "parameters 16 -> 16",
        "storage bits 512 -> 512",
    ]


def test_no_line_is_wider_than_120_columns():
    report = resnet_report()
    assert max(map(len, str(report.diff(report.reprice(widths={"*": (4, 8)}))).splitlines())) <= 120


def test_of_many_nodes_the_dearest_are_shown_and_the_others_summed_up():
    before = linear_report(*((f"layer{index}", "") for index in range(60)))
    costs = [*range(55), *(10**9 + index for index in range(5))]  # the last five cost far more now
    rows = tuple(replace(row, bitops=cost) for row, cost in zip(before.rows, costs, strict=True))
    lines = str(before.diff(replace(before, rows=rows))).splitlines()
    shown = [line.split()[0] for line in lines if " changed " in line and line.startswith(" layer")]
    assert shown == [f"layer{index}" for index in (*range(35), *range(55, 60))]
    assert f"20 more nodes save {(20 * 16 * 1024 - sum(range(35, 55))) / 1000:.1f}k BitOps together" in lines


def test_what_nobody_could_count_is_named():
    report = linear_report(("a", ""))
    unknown = replace(report, uncounted=(Uncounted("mystery", "fft", "", "operator without a formula"),))
    assert "NOT COUNTED after: mystery (fft, operator without a formula)" in str(report.diff(unknown))
