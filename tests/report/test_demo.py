"""The table of the demo."""

from dataclasses import replace

from chainfx.report import DemoRow, demo_headline, demo_table
from chainfx.report.text_tables import text_of
from tests.report.values import COMPRESSED, ORIGINAL


def test_every_stage_is_a_row_with_ratios_against_the_original():
    rows = [
        DemoRow(ORIGINAL, 0.99, 2048 * 50, 4e6, latency=0.004, throughput=5000.0),
        DemoRow(COMPRESSED, 0.9876, 2048 * 10, 1e6, latency=0.001, throughput=20000.0),
    ]
    table = demo_table(rows)
    assert [column.header for column in table.columns] == [
        *("stage", "accuracy", "MACs", "BitOps", "worst", "strict", "on disk", "alone", "batch")
    ]
    assert [list(column.cells)[1] for column in table.columns] == [
        *("early-exit", "98.76%", "1 M", "8.0x", "2.0x", "4.0x", "20 KiB", "4.0x", "4.0x"),
    ]
    assert demo_headline(rows) == "test accuracy 99.0% -> 98.8%: 8.0x fewer BitOps, 5.0x smaller, 4.0x faster"
    assert table.caption == (
        "the original takes 4.00 ms for one image alone, and does 5,000 images a second in batches of 64"
    )


def test_the_table_fits_80_columns_whole():
    row = DemoRow(replace(ORIGINAL, name="prune-channels"), 1.0, 1024 * 999, 4e6, latency=0.004, throughput=5000.0)
    lines = text_of(demo_table([row, replace(row, strict_bitops=4e3, latency=4e-5)]), width=80).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert [line.split()[0] for line in lines].count("prune-channels") == 2
    assert lines[-3].split()[1:] == ["100.00%", "2", "M", "1.0x", "1.0x", "1,000x", "999", "KiB", "100x", "1.0x"]
