"""Findings in SARIF 2.1.0, the form in which code hosts and editors show them beside the lines of a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chainfx.scheduler import Finding
from chainfx.version import __version__

__all__ = ["sarif"]

_LEVELS = {"error": "error", "warning": "warning", "info": "note"}


def sarif(findings: Sequence[Finding], path: str | Path, lines: Mapping[int, int]) -> dict[str, Any]:
    """A SARIF log of findings about the recipe at ``path``; ``lines`` has the line of each pass, by position from 1.

    The line of a finding is that of its first pass; one about the whole chain stands at line 1.

    >>> log = sarif([Finding("stages", "warning", (), "too many", "a paper", "use fewer")], "r.yaml", {})
    >>> log["runs"][0]["results"][0]["level"], log["runs"][0]["results"][0]["message"]["text"]
    ('warning', 'too many [a paper]; to mend it, use fewer')
    """
    rules = [{"id": rule} for rule in dict.fromkeys(finding.rule for finding in findings)]
    driver = {"name": "chainfx lint", "version": __version__, "rules": rules}
    results = [_result(finding, str(path), lines) for finding in findings]
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }


def _result(finding: Finding, path: str, lines: Mapping[int, int]) -> dict[str, Any]:
    line = min((lines[position] for position in finding.positions if position in lines), default=1)
    contested = f"; contested: {finding.contested}" if finding.contested else ""
    text = f"{finding.reason} [{finding.source}]{contested}; to mend it, {finding.fix}"
    place = {"artifactLocation": {"uri": path}, "region": {"startLine": line}}
    return {
        "ruleId": finding.rule,
        "level": _LEVELS[finding.severity],
        "message": {"text": text},
        "locations": [{"physicalLocation": place}],
    }
