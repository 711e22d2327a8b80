"""A cost report as a table to read."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chainfx.bitops.report import CostReport, CostRow

__all__ = ["render"]

_WIDTH = 120


def render(report: CostReport) -> str:
    """The report as text of at most 120 columns: one line a node with work, then the totals."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=_title(report), title_justify="left", title_style="", pad_edge=False)
    for heading in ("node", "operator", "output"):
        table.add_column(heading, overflow="fold")
    for heading in ("MACs", "element-wise", "w x a", "BitOps", *(("segment",) if report.exits else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(*_cells(row, bool(report.exits)))
    stream = io.StringIO()
    console = Console(file=stream, width=_WIDTH, color_system=None, markup=False, highlight=False, emoji=False)
    console.print(table)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    return "\n".join([*lines, *_totals(report)])


def _title(report: CostReport) -> str:
    return f"cost of one sample, convention {report.convention} (1 MAC = 2 FLOPs)"


def _cells(row: CostRow, with_segment: bool) -> list[str]:
    bits = f"{row.weight_bits} x {row.activation_bits}" if row.macs else ""
    cells = [row.node, row.operator, "x".join(map(str, row.shape))]
    cells += [_count(row.macs), _count(row.elementwise), bits, _count(row.bitops)]
    return [*cells, str(row.segment)] if with_segment else cells


def _count(value: int | float | Fraction) -> str:
    if not value:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{float(value):,.1f}"


def _totals(report: CostReport) -> list[str]:
    lines = [f"MACs {report.macs:,}, BitOps {_count(report.bitops) or '0'}, element-wise {report.elementwise:,}"]
    if report.exits:
        lines[0] += " (worst case)"
    if report.exits and report.exit_rates is None:
        lines.append(f"expected: unknown, nobody measured the rates of {', '.join(report.exits)}")
    elif report.exits and report.exit_rates:
        rates = ", ".join(f"{name} {rate:.1%}" for name, rate in zip(report.exits, report.exit_rates, strict=True))
        lines.append(
            f"expected: MACs {report.expected_macs:,.0f}, BitOps {report.expected_bitops:,.0f} (leaving: {rates})"
        )
    lines.append(
        f"storage {report.storage_bits:,} bits ({report.storage_bits / 8e6:,.3f} MB), parameters {report.parameters:,}"
    )
    lines += [f"NOT COUNTED: {item.node} ({item.operator}, {item.reason})" for item in report.uncounted]
    return lines
