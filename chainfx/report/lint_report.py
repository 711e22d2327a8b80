"""What lint found as text: the chain, each finding with its source and what to do, the corrected chain, the costs."""

from collections.abc import Iterable, Sequence

from rich.table import Table

from chainfx.linting import LintReport, StagePrediction
from chainfx.passes import Pass
from chainfx.report.text_tables import amount, size, stage_table, text_of, times, wrapped
from chainfx.scheduler import SEVERITIES, Finding

__all__ = ["findings_text", "lint_text"]

_WIDTH = 100
_INDENT = "    "
_HEADINGS = ("stage", "MACs", "BitOps", "parameters", "storage", "time to tune")


def lint_text(report: LintReport) -> str:
    """The chain in the first line, then the findings, the corrected chain if it is another, and the dry run."""
    parts = [f"chain: {_chain(report.passes)}", findings_text(report.findings), _counted(report.findings)]
    if report.corrected != report.passes:
        parts.append(f"corrected: {_chain(report.corrected)}")
    if report.stages:
        parts.append(text_of(_predicted(report.stages), width=_WIDTH).rstrip())
        parts += [wrapped(f"time to tune by {each}", _WIDTH) for each in _bases(report.stages)]
    return "\n".join(part for part in parts if part)


def findings_text(findings: Iterable[Finding]) -> str:
    """Each finding in a paragraph: how bad, where, the rule and the reason; below it the source and what to do."""
    return "\n".join(line for finding in findings for line in _lines(finding))


def _lines(finding: Finding) -> list[str]:
    where = f" at {' and '.join(map(str, finding.positions))}" if finding.positions else ""
    details = [f"source: {finding.source}"]
    details += [f"contested: {finding.contested}"] if finding.contested else []
    details.append(f"fix: {finding.fix}")
    head = f"{finding.severity}{where}, {finding.rule}: {finding.reason}"
    return [wrapped(head, _WIDTH, "  "), *(wrapped(detail, _WIDTH, _INDENT) for detail in details)]


def _counted(findings: Sequence[Finding]) -> str:
    counts = {each: sum(finding.severity == each for finding in findings) for each in SEVERITIES}
    shown = [f"{count} {each}{'s' * (count > 1 and each != 'info')}" for each, count in counts.items() if count]
    return ", ".join(shown) or "nothing found"


def _chain(passes: Sequence[Pass]) -> str:
    return " -> ".join(" ".join(one.label.split()) for one in passes) or "no passes"


def _predicted(stages: Sequence[StagePrediction]) -> Table:
    table = stage_table("predicted without training, one sample that leaves at no exit", _HEADINGS)
    original = stages[0].costs
    for stage in stages:
        costs = stage.costs
        cells = (amount(costs.macs), times(original.bitops / costs.bitops), amount(costs.parameters))
        table.add_row(stage.label, *cells, size(costs.storage_bits), _duration(stage.seconds))
    return table


def _bases(stages: Sequence[StagePrediction]) -> list[str]:
    """What the times come from, each with the stages it holds for where there are several."""
    found: dict[str, list[str]] = {}
    for stage in stages:
        if stage.basis:
            found.setdefault(stage.basis, []).append(str(stage.position))
    return [f"{basis}: {', '.join(at)}" if len(found) > 1 else basis for basis, at in found.items()]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
