"""The table of ``chainfx demo``: what each stage of a chain costs and keeps, and how fast it runs on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from chainfx.scheduler import StageRecord

__all__ = ["DemoRow", "demo_table"]

_TITLE = "test accuracy; times fewer BitOps for one image under mac_bw_ba, and strict; speed against the original"
_COSTS = ("MACs", "BitOps", "worst", "strict", "parameters", "on disk")
_HEADINGS = ("stage", "accuracy", *_COSTS, "batch 1", "batch 64")


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One stage as the demo measured it.

    ``test_accuracy``: in [0, 1]. ``bytes_on_disk``: of the saved network. ``strict_bitops``: expected bit operations of
    one image under the convention ``strict``. ``latency``: median seconds for one image. ``throughput``: images a
    second in batches of 64.
    """

    record: StageRecord
    test_accuracy: float
    bytes_on_disk: int
    strict_bitops: float
    latency: float = 0.0
    throughput: float = 0.0


def demo_table(rows: Sequence[DemoRow]) -> Table:
    """One line a stage, the original network first; ratios are against it."""
    table = Table(title=_TITLE)
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for row in rows:
        table.add_row(*_cells(row, rows[0]))
    return table


def _cells(row: DemoRow, first: DemoRow) -> list[str]:
    original, after = first.record.after, row.record.after
    expected = after.bitops if after.expected_bitops is None else after.expected_bitops
    return [
        row.record.name,
        f"{row.test_accuracy:.2%}",
        f"{after.macs:,}",
        f"{original.bitops / expected:,.1f}x",
        f"{original.bitops / after.bitops:,.1f}x",
        f"{first.strict_bitops / row.strict_bitops:,.1f}x",
        f"{after.parameters:,}",
        f"{row.bytes_on_disk / 1024:,.0f} KiB",
        f"{row.latency * 1e3:.2f} ms ({first.latency / row.latency:.1f}x)",
        f"{row.throughput:,.0f}/s ({row.throughput / first.throughput:.1f}x)",
    ]
