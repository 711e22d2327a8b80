"""The table of the demo."""

from chainfx.report import DemoRow, demo_table
from tests.report.values import COMPRESSED, ORIGINAL


def test_every_stage_is_a_row_with_ratios_against_the_original():
    rows = [
        DemoRow(ORIGINAL, 0.99, 2048 * 50, 4e6, latency=0.004, throughput=5000.0),
        DemoRow(COMPRESSED, 0.9876, 2048 * 10, 1e6, latency=0.001, throughput=20000.0),
    ]
    table = demo_table(rows)
    assert [column.header for column in table.columns] == [
        *("stage", "accuracy", "MACs", "BitOps", "worst", "strict", "parameters", "on disk", "batch 1", "batch 64")
    ]
    assert [list(column.cells)[1] for column in table.columns] == [
        *("early-exit", "98.76%", "1,000,000", "8.0x", "2.0x", "4.0x", "1,234", "20 KiB"),
        *("1.00 ms (4.0x)", "20,000/s (4.0x)"),
    ]
