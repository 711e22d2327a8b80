"""The table and the text of the report of a chain."""

from dataclasses import replace

from chainfx.passes import Skipped
from chainfx.scheduler import ChainReport
from tests.report.values import COMPRESSED, ORIGINAL


def cells_of(table):
    return [list(column.cells) for column in table.columns]


def test_every_stage_is_a_row_with_ratios_against_the_original():
    table = ChainReport("the plan", (ORIGINAL, COMPRESSED)).table()
    assert table.title == "accuracy on held-out training data; times fewer BitOps a sample (strict)"
    assert [column.header for column in table.columns] == [
        *("stage", "accuracy", "MACs", "BitOps", "worst", "parameters", "storage")
    ]
    assert [column.justify for column in table.columns] == ["left"] + 6 * ["right"]
    assert cells_of(table) == [
        ["original", "early-exit(exits=['a'])"],
        ["-", "98.76%"],
        ["2 M", "1 M"],
        ["1.0x", "8.0x"],
        ["1.0x", "2.0x"],
        ["1,234", "1,234"],
        ["50.0 KiB", "25.0 KiB"],
    ]


def test_an_expected_cost_that_nobody_measured():
    unknown = replace(COMPRESSED, after=replace(COMPRESSED.after, expected_macs=None, expected_bitops=None))
    table = ChainReport("", (ORIGINAL, unknown)).table()
    assert cells_of(table)[3] == ["1.0x", "unknown"]


def test_the_text_is_the_plan_the_table_and_what_was_left_alone():
    skipped = (Skipped("conv1", "it has [bold]1[/bold] channel"), Skipped("fc", "x" * 150))
    text = str(ChainReport("the plan\n  its reasons", (ORIGINAL, replace(COMPRESSED, skipped=skipped))))
    plan, table = text.split("\n\n")
    assert plan == "the plan\n  its reasons"
    assert "early-exit(exits=['a'])" in table
    assert table.splitlines()[-4:] == [
        "early-exit left conv1 alone: it has [bold]1[/bold] channel",
        "early-exit left fc alone: ",
        "x" * 80,
        "x" * 70,
    ]


def test_what_was_left_alone_for_one_reason_is_one_line_with_the_first_names():
    alone = (
        Skipped("a", "it is small"),
        Skipped("b", "it is shared"),
        *(Skipped(name, "it is small") for name in "cd"),
    )
    more = tuple(Skipped(name, "it is odd") for name in "efgh")
    two = replace(COMPRESSED, name="fuse", skipped=(Skipped("a", "it is small"), Skipped("b", "it is small")))
    text = str(ChainReport("", (ORIGINAL, replace(COMPRESSED, skipped=alone + more), two)))
    assert text.splitlines()[-4:] == [
        "early-exit left 3 alone (a, c, d): it is small",
        "early-exit left b alone: it is shared",
        "early-exit left 4 alone (e, f, g, ...): it is odd",
        "fuse left 2 alone (a, b): it is small",
    ]


def test_remarks_stand_between_the_table_and_what_was_left_alone():
    told = replace(COMPRESSED, remarks=("does not pay.", "lost much."), skipped=(Skipped("a", "it is small"),))
    assert str(ChainReport("", (ORIGINAL, told))).splitlines()[-3:] == [
        "early-exit: does not pay.",
        "early-exit: lost much.",
        "early-exit left a alone: it is small",
    ]


def test_the_table_of_a_large_network_fits_80_columns():
    costs = replace(COMPRESSED.after, macs=15_470_264_320, parameters=138_357_544, storage_bits=2**33 * 99.9)
    large = replace(COMPRESSED, label="prune-channels(ratio=0.5, importance='taylor')", after=costs, metric=1.0)
    unknown = replace(large, after=replace(costs, expected_bitops=None))
    lines = str(ChainReport("", (ORIGINAL, large, unknown))).splitlines()
    assert max(map(len, lines)) <= 80
    assert "prune-channels(ratio=0" in lines[-4] and lines[-4].split()[1:] == [
        *("100.00%", "15.5", "G", "8.0x", "2.0x", "138", "M", "99.9", "GiB")
    ]


def test_the_text_is_the_same_where_colours_are_forced(monkeypatch):
    report = ChainReport("the plan", (ORIGINAL, COMPRESSED))
    plain = str(report)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert str(report) == plain
