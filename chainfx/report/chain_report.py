"""The report of a chain: the plan's reasons, one row for each stage, and what the passes left alone."""

from rich.table import Table

from chainfx.report.lint_report import findings_text
from chainfx.report.text_tables import amount, size, stage_table, text_of, times
from chainfx.scheduler import ChainReport, Costs, StageRecord

__all__ = ["chain_table", "chain_text"]

_WIDTH = 80
_HEADINGS = ("stage", "accuracy", "MACs", "BitOps", "worst", "parameters", "storage")


def chain_text(report: ChainReport) -> str:
    """The plan, what lint found, the table of stages, and a line for every layer left alone, with the reason."""
    left_alone = [
        f"{record.name} left {item.node} alone: {item.reason}" for record in report.records for item in record.skipped
    ]
    table = text_of(chain_table(report), *left_alone, width=_WIDTH).rstrip()
    found = [f"found before it ran:\n{findings_text(report.findings)}"] if report.findings else []
    return "\n\n".join([report.plan, *found, table])


def chain_table(report: ChainReport) -> Table:
    """One row a stage: accuracy on validation data, the cost of one sample, parameters and storage.

    Bit operations are shown as how many times fewer they are than those of the original network: those expected of a
    sample, and those of a sample that leaves at no exit (``worst``).
    """
    origin = report.records[0].after
    heading = f"accuracy on held-out training data; times fewer BitOps a sample ({origin.convention})"
    table = stage_table(heading, _HEADINGS)
    for record in report.records:
        table.add_row(*_cells(record, origin))
    return table


def _cells(record: StageRecord, origin: Costs) -> list[str]:
    after = record.after
    expected = after.expected_bitops
    return [
        record.label,
        "-" if record.metric is None else f"{record.metric:.2%}",
        amount(after.macs),
        "unknown" if expected is None else times(origin.bitops / expected),
        times(origin.bitops / after.bitops),
        amount(after.parameters),
        size(after.storage_bits),
    ]
