"""A cost diff as a table to read: the nodes that changed, and the totals before and after."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import get_args

from chainfx.bitops import ChangeKind, CostDiff, CostReport, NodeChange
from chainfx.errors import CostError
from chainfx.report.text_tables import lines_of, plain_table

__all__ = ["DIFF_HEADINGS", "diff_cells", "diff_text", "diff_title", "diff_totals"]

DIFF_HEADINGS = ("node", "change", "w x a", "MACs", "weights", "BitOps", "saved", "ratio")
_LINES = 40


def _has_macs(change: NodeChange) -> bool:
    return any(row is not None and row.macs for row in (change.before, change.after))


def diff_title(diff: CostDiff) -> str:
    """What the numbers are, in one line."""
    return f"what changed for one sample, convention {diff.before.convention} (1 MAC = 2 FLOPs)"


def diff_text(diff: CostDiff) -> str:
    """Two reports side by side: the nodes with MACs that changed, at most 40, and the totals before and after."""
    shown, rest = _largest([change for change in diff.changed if _has_macs(change)])
    table = plain_table(diff_title(diff), DIFF_HEADINGS, 3)
    for change in shown:
        table.add_row(*diff_cells(change))
    lines = lines_of(table) if shown else [diff_title(diff)]
    if rest:
        saved = _short(sum((change.saved_bitops for change in rest), start=0)) or "0"
        lines.append(f"{len(rest)} more nodes save {saved} BitOps together")
    return "\n".join([*lines, *diff_totals(diff)])


def diff_cells(change: NodeChange) -> list[str]:
    """The texts of the columns for one node of a diff."""
    sides = (change.before, change.after)
    bits = _arrow(*("" if row is None or not row.macs else f"{row.weight_bits}x{row.activation_bits}" for row in sides))
    costs = [
        _arrow(*("" if row is None else _short(getattr(row, cost)) for row in sides))
        for cost in ("macs", "weight_elements", "bitops")
    ]
    ratio = "" if change.ratio is None else f"{change.ratio:,.1f}x"
    return [change.node, change.kind, bits, *costs, _short(change.saved_bitops), ratio]


def diff_totals(diff: CostDiff) -> list[str]:
    """The lines below the table of a diff: every total before and after, and what nobody could count."""
    before, after = diff.before, diff.after
    kinds = Counter(change.kind for change in diff.changes)
    lines = ["nodes: " + ", ".join(f"{kinds[kind]} {kind}" for kind in get_args(ChangeKind))]
    totals = {"MACs": "macs", "BitOps": "bitops", "element-wise": "elementwise"}
    totals |= {"parameters": "parameters", "storage bits": "storage_bits"}
    lines += [_total_line(name, getattr(before, total), getattr(after, total)) for name, total in totals.items()]
    if before.exits or before.conditions or after.exits or after.conditions:
        lines.insert(3, _expected_line(before, after))
    for side, report in (("before", before), ("after", after)):
        lines += [f"NOT COUNTED {side}: {item.node} ({item.operator}, {item.reason})" for item in report.uncounted]
    return lines


def _expected_line(before: CostReport, after: CostReport) -> str:
    """The expected bit operations, or why there are none."""
    try:
        return _total_line("expected BitOps", before.expected_bitops, after.expected_bitops)
    except CostError as error:
        return f"expected BitOps: unknown ({error})"


def _total_line(name: str, before: float, after: float) -> str:
    ratio = ""
    if before and after and before != after:
        ratio = f" ({before / after:,.2f}x less)" if before > after else f" ({after / before:,.2f}x more)"
    return f"{name} {before:,} -> {after:,}{ratio}"


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}".strip()


def _largest(changes: Sequence[NodeChange]) -> tuple[list[NodeChange], list[NodeChange]]:
    """The changes that matter most, as many as fit on a screen, and the others; both in the order they had."""
    order = sorted(range(len(changes)), key=lambda place: -abs(Fraction(changes[place].saved_bitops)))
    kept = set(order[:_LINES])
    return (
        [change for place, change in enumerate(changes) if place in kept],
        [change for place, change in enumerate(changes) if place not in kept],
    )


def _short(value: float | Fraction) -> str:
    """A number to four digits with its unit, such as 41.52G; nothing for zero."""
    size, units, unit = float(value), ["T", "G", "M", "k"], ""
    while units and abs(size) >= 999.95:
        size, unit = size / 1000, units.pop()
    return f"{size:{'#' if unit else ''}.4g}{unit}" if size else ""
