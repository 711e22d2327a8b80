"""What a pass changed: two cost reports side by side, node by node."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, get_args

from chainfx.bitops.table import plain_table, text_of
from chainfx.errors import CostError

if TYPE_CHECKING:
    from chainfx.bitops.report import CostReport, CostRow

__all__ = ["DIFF_HEADINGS", "CostDiff", "NodeChange", "change_cells", "diff_of", "diff_totals", "heading_of"]

DIFF_HEADINGS = ("node", "change", "w x a", "MACs", "weights", "BitOps", "saved", "ratio")
Kind = Literal["removed", "changed", "added", "same"]
_LINES = 40


@dataclass(frozen=True, slots=True)
class NodeChange:
    """One node before and after; ``before`` is ``None`` for a node that was added, ``after`` for one that was removed.

    ``node``, ``module`` and ``operator`` are those of before, or of after if the node was added.
    """

    node: str
    module: str
    operator: str
    before: CostRow | None
    after: CostRow | None

    @property
    def kind(self) -> Kind:
        """What happened to the node; ``"same"`` if it costs what it cost, at the same widths."""
        if self.before is None:
            return "added"
        if self.after is None:
            return "removed"
        return "same" if _costs(self.before) == _costs(self.after) else "changed"

    @property
    def saved_macs(self) -> int:
        """MACs of one sample saved; negative if there are more now."""
        return (self.before.macs if self.before else 0) - (self.after.macs if self.after else 0)

    @property
    def saved_weights(self) -> int:
        """Elements of the layer's weight saved; negative if there are more now."""
        return (self.before.weight_elements if self.before else 0) - (self.after.weight_elements if self.after else 0)

    @property
    def saved_bitops(self) -> int | Fraction:
        """Bit operations of one sample saved, exactly; negative if there are more now."""
        return (self.before.bitops if self.before else 0) - (self.after.bitops if self.after else 0)

    @property
    def ratio(self) -> float | None:
        """Bit operations before over after; ``None`` where either is nothing."""
        if self.before is None or self.after is None or not self.before.bitops or not self.after.bitops:
            return None
        return float(Fraction(self.before.bitops) / self.after.bitops)


@dataclass(frozen=True, slots=True)
class CostDiff:
    """Two reports under one convention, node by node; ``print`` it.

    ``changes``: every node of either report, the one that saves most bit operations first. Their ``saved_macs`` and
    ``saved_bitops`` add up to the difference of the reports' totals, exactly, except with a ``torch.cond``, of which
    totals hold the dearest branch alone.
    """

    before: CostReport
    after: CostReport
    changes: tuple[NodeChange, ...]

    @property
    def changed(self) -> tuple[NodeChange, ...]:
        """The nodes that were added, removed or changed."""
        return tuple(change for change in self.changes if change.kind != "same")

    def to_dict(self) -> dict[str, Any]:
        """Both reports and the nodes that changed, as plain JSON values."""
        changed = [
            {
                "node": change.node,
                "module": change.module,
                "operator": change.operator,
                "change": change.kind,
                "saved_macs": change.saved_macs,
                "saved_weights": change.saved_weights,
                "saved_bitops": float(change.saved_bitops),
                "ratio": change.ratio,
            }
            for change in self.changed
        ]
        return {"before": self.before.to_dict(), "after": self.after.to_dict(), "changed": changed}

    def to_csv(self) -> str:
        """The nodes that changed as comma-separated values, one row a node, headings first."""
        from chainfx.bitops.sheet import diff_sheet

        return diff_sheet(self)

    def __str__(self) -> str:
        return _render(self)

    def _repr_html_(self) -> str:
        from chainfx.bitops.html import diff_html

        return diff_html(self)


def diff_of(before: CostReport, after: CostReport) -> CostDiff:
    """Match the nodes of two reports: by name and module path, then by module path, then by name alone.

    So a node keeps its partner when only its module is unknown, and a name that now stands for another layer does not
    pair two different ones. Raises :class:`CostError` if the reports are under different conventions or for inputs of
    different shapes; the batch does not matter.

    >>> import torch, chainfx
    >>> report = chainfx.count(torch.nn.Linear(8, 4), torch.zeros(1, 8))
    >>> diff = report.diff(report.reprice(widths={"*": (4, 8)}))
    >>> [(change.kind, change.saved_bitops, change.ratio) for change in diff.changes]
    [('changed', 31744, 32.0)]
    """
    if before.convention != after.convention:
        raise CostError(
            f"the reports are under different conventions, {before.convention!r} and {after.convention!r}; "
            "count both under one."
        )
    sizes = [tuple(shape[1:] for shape in report.inputs) for report in (before, after)]
    if sizes[0] != sizes[1]:
        shapes = [" and ".join("x".join(map(str, shape)) for shape in report.inputs) for report in (before, after)]
        raise CostError(
            f"the reports are for different inputs, {shapes[0]} and {shapes[1]}; count both with one shape."
        )
    changes = sorted(_changes(before.rows, after.rows), key=lambda change: -change.saved_bitops)
    return CostDiff(before, after, tuple(changes))


_Key = Callable[["CostRow"], Hashable]
_KEYS: tuple[_Key, ...] = (lambda row: (row.node, row.module), lambda row: row.module or None, lambda row: row.node)


def _changes(before: Sequence[CostRow], after: Sequence[CostRow]) -> list[NodeChange]:
    """The changes in the order of the rows before, then those of rows that were added."""
    partner: dict[int, int] = {}
    for key in _KEYS:
        taken = set(partner.values())
        waiting: defaultdict[Hashable, deque[int]] = defaultdict(deque)
        for place, row in enumerate(after):
            if place not in taken:
                waiting[key(row)].append(place)
        for place, row in enumerate(before):
            if place not in partner and key(row) is not None and waiting[key(row)]:
                partner[place] = waiting[key(row)].popleft()
    partners = [after[partner[place]] if place in partner else None for place in range(len(before))]
    kept = [NodeChange(r.node, r.module, r.operator, r, other) for r, other in zip(before, partners, strict=True)]
    taken = set(partner.values())
    added = [row for place, row in enumerate(after) if place not in taken]
    return kept + [NodeChange(row.node, row.module, row.operator, None, row) for row in added]


def _has_macs(change: NodeChange) -> bool:
    return any(row is not None and row.macs for row in (change.before, change.after))


def _costs(row: CostRow) -> tuple[object, ...]:
    return row.macs, row.elementwise, row.weight_bits, row.activation_bits, row.bitops


def heading_of(diff: CostDiff) -> str:
    """What the numbers are, in one line."""
    return f"what changed for one sample, convention {diff.before.convention} (1 MAC = 2 FLOPs)"


def _render(diff: CostDiff) -> str:
    """Two reports side by side: the nodes with MACs that changed, at most 40, and the totals before and after."""
    shown, rest = _largest([change for change in diff.changed if _has_macs(change)])
    table = plain_table(heading_of(diff), DIFF_HEADINGS, 3)
    for change in shown:
        table.add_row(*change_cells(change))
    lines = text_of(table) if shown else [heading_of(diff)]
    if rest:
        saved = _short(sum((change.saved_bitops for change in rest), start=0)) or "0"
        lines.append(f"{len(rest)} more nodes save {saved} BitOps together")
    return "\n".join([*lines, *diff_totals(diff)])


def change_cells(change: NodeChange) -> list[str]:
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
    lines = ["nodes: " + ", ".join(f"{kinds[kind]} {kind}" for kind in get_args(Kind))]
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
