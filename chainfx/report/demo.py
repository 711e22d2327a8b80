"""The table of ``chainfx demo``: what each stage of a chain costs and keeps, and how fast it runs on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from chainfx.report.text_tables import amount, stage_table, times
from chainfx.scheduler import StageRecord

__all__ = ["DemoRow", "demo_headline", "demo_table"]

_TITLE = "test accuracy; times fewer BitOps for one image (mac_bw_ba, and strict); times faster"
_HEADINGS = ("stage", "accuracy", "MACs", "BitOps", "worst", "strict", "on disk", "alone", "batch")


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
    """One line a stage, the original network first; ratios are against it, and its own times stand below."""
    first = rows[0]
    table = stage_table(_TITLE, _HEADINGS)
    table.caption = (
        f"the original takes {first.latency * 1e3:.2f} ms for one image alone, "
        f"and does {first.throughput:,.0f} images a second in batches of 64"
    )
    table.caption_justify, table.caption_style = "left", ""
    for row in rows:
        table.add_row(*_cells(row, first))
    return table


def demo_headline(rows: Sequence[DemoRow]) -> str:
    """What the whole chain lost and gained, for one image alone, in one line."""
    first, last = rows[0], rows[-1]
    work = times(first.record.after.bitops / _expected(last.record))
    disk, speed = times(first.bytes_on_disk / last.bytes_on_disk), times(first.latency / last.latency)
    accuracy = f"test accuracy {first.test_accuracy:.1%} -> {last.test_accuracy:.1%}"
    return f"{accuracy}: {work} fewer BitOps, {disk} smaller, {speed} faster"


def _expected(record: StageRecord) -> float:
    expected = record.after.expected_bitops
    return record.after.bitops if expected is None else expected


def _cells(row: DemoRow, first: DemoRow) -> list[str]:
    original, after = first.record.after, row.record.after
    return [
        row.record.name,
        f"{row.test_accuracy:.2%}",
        amount(after.macs),
        times(original.bitops / _expected(row.record)),
        times(original.bitops / after.bitops),
        times(first.strict_bitops / row.strict_bitops),
        f"{row.bytes_on_disk / 1024:,.0f} KiB",
        times(first.latency / row.latency),
        times(row.throughput / first.throughput),
    ]
