"""The table and the text of the report of a chain."""

from dataclasses import replace

from chainfx.passes import Skipped
from chainfx.scheduler import ChainReport
from tests.report.values import COMPRESSED, ORIGINAL


def cells_of(table):
    return [list(column.cells) for column in table.columns]


def test_every_stage_is_a_row_with_ratios_against_the_original():
    table = ChainReport("the plan", (ORIGINAL, COMPRESSED)).table()
    assert table.title == "bit operations under 'strict', one sample; accuracy on held-out training data"
    assert [column.header for column in table.columns] == [
        *("stage", "accuracy", "MACs", "BitOps expected", "BitOps worst", "parameters", "storage")
    ]
    assert [column.justify for column in table.columns] == ["left"] + 6 * ["right"]
    assert cells_of(table) == [
        ["original", "early-exit(exits=['a'])"],
        ["-", "98.76%"],
        ["2,000,000", "1,000,000"],
        ["1.0x less", "8.0x less"],
        ["1.0x less", "2.0x less"],
        ["1,234", "1,234"],
        ["50.0 KiB", "25.0 KiB"],
    ]


def test_an_expected_cost_that_nobody_measured():
    unknown = replace(COMPRESSED, after=replace(COMPRESSED.after, expected_macs=None, expected_bitops=None))
    table = ChainReport("", (ORIGINAL, unknown)).table()
    assert cells_of(table)[3] == ["1.0x less", "not measured"]


def test_the_text_is_the_plan_the_table_and_what_was_left_alone():
    skipped = (Skipped("conv1", "it has [bold]1[/bold] channel"), Skipped("fc", "x" * 150))
    text = str(ChainReport("the plan\n  its reasons", (ORIGINAL, replace(COMPRESSED, skipped=skipped))))
    plan, table = text.split("\n\n")
    assert plan == "the plan\n  its reasons"
    assert "early-exit(exits=['a'])" in table
    assert table.splitlines()[-4:] == [
        "early-exit left conv1 alone: it has [bold]1[/bold] channel",
        "early-exit left fc alone: ",
        "x" * 140,
        "x" * 10,
    ]


def test_the_text_is_the_same_where_colours_are_forced(monkeypatch):
    report = ChainReport("the plan", (ORIGINAL, COMPRESSED))
    plain = str(report)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert str(report) == plain
