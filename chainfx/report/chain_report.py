"""The report of a chain: the plan's reasons, one row for each stage, and what the passes left alone."""

from rich.table import Table

from chainfx.report.text_tables import text_of
from chainfx.scheduler import ChainReport, Costs, StageRecord

__all__ = ["chain_table", "chain_text"]

_WIDTH = 140
_HEADINGS = ("stage", "accuracy", "MACs", "BitOps expected", "BitOps worst", "parameters", "storage")


def chain_text(report: ChainReport) -> str:
    """The plan, the table of stages, and a line for every layer that a pass left alone, with the reason."""
    left_alone = [
        f"{record.name} left {item.node} alone: {item.reason}" for record in report.records for item in record.skipped
    ]
    return f"{report.plan}\n\n{text_of(chain_table(report), *left_alone, width=_WIDTH).rstrip()}"


def chain_table(report: ChainReport) -> Table:
    """One row a stage; accuracy on validation data, ratios against the original, cost of one sample."""
    origin = report.records[0].after
    table = Table(title=f"bit operations under {origin.convention!r}, one sample; accuracy on held-out training data")
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for record in report.records:
        table.add_row(*_cells(record, origin))
    return table


def _cells(record: StageRecord, origin: Costs) -> list[str]:
    after = record.after
    expected = after.expected_bitops
    return [
        record.label,
        "-" if record.metric is None else f"{record.metric:.2%}",
        f"{after.macs:,}",
        "not measured" if expected is None else f"{origin.bitops / expected:.1f}x less",
        f"{origin.bitops / after.bitops:.1f}x less",
        f"{after.parameters:,}",
        f"{after.storage_bits / 8192:,.1f} KiB",
    ]
