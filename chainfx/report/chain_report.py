"""The report of a chain: the plan's reasons, one row for each stage, and what the passes left alone."""

from collections.abc import Iterator

from rich.table import Table

from chainfx.report.lint_report import findings_text
from chainfx.report.text_tables import amount, size, stage_table, text_of, times
from chainfx.scheduler import ChainReport, Costs, StageRecord

__all__ = ["chain_table", "chain_text"]

_WIDTH = 80
_HEADINGS = ("MACs", "BitOps", "worst", "parameters", "storage")
_NAMED = 3


def chain_text(report: ChainReport) -> str:
    """The plan, what lint found, the stages with their remarks, and a line for every reason to leave layers alone."""
    remarks = [f"{record.name}: {remark}" for record in report.records for remark in record.remarks]
    left_alone = [line for record in report.records for line in _left_alone(record)]
    table = text_of(chain_table(report), *remarks, *left_alone, width=_WIDTH).rstrip()
    found = [f"found before it ran:\n{findings_text(report.findings)}"] if report.findings else []
    return "\n\n".join([report.plan, *found, table])


def _left_alone(record: StageRecord) -> Iterator[str]:
    """One line for each reason why a pass left something alone: how many, and the first of them by name."""
    reasons: dict[str, list[str]] = {}
    for item in record.skipped:
        reasons.setdefault(item.reason, []).append(item.node)
    for reason, nodes in reasons.items():
        named = ", ".join(nodes[:_NAMED])
        if len(nodes) == 1:
            yield f"{record.name} left {named} alone: {reason}"
        else:
            more = ", ..." if len(nodes) > _NAMED else ""
            yield f"{record.name} left {len(nodes)} alone ({named}{more}): {reason}"


def chain_table(report: ChainReport) -> Table:
    """One row a stage: the trainer's metric on validation data, the cost of one sample, parameters and storage.

    Bit operations are shown as how many times fewer they are than those of the original network: those expected of a
    sample, and those of a sample that leaves at no exit (``worst``).
    """
    origin, metric = report.records[0].after, report.records[0].measured_by
    measured = metric.name if metric.higher_is_better else f"{metric.name} (lower is better)"
    heading = f"{measured} on held-out training data; times fewer BitOps a sample ({origin.convention})"
    table = stage_table(heading, ("stage", metric.name, *_HEADINGS))
    for record in report.records:
        table.add_row(*_cells(record, origin))
    return table


def _cells(record: StageRecord, origin: Costs) -> list[str]:
    after = record.after
    expected = after.expected_bitops
    return [
        record.label,
        "-" if record.metric is None else record.measured_by.text(record.metric),
        amount(after.macs),
        "unknown" if expected is None else times(origin.bitops / expected),
        times(origin.bitops / after.bitops),
        amount(after.parameters),
        size(after.storage_bits),
    ]
