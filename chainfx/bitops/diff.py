"""Compare two cost reports node by node, for instance those before and after a pass."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from chainfx.bitops.rows import CostRow
from chainfx.errors import CostError
from chainfx.rendering import rendered

if TYPE_CHECKING:
    from chainfx.bitops.costs import CostReport

__all__ = ["ChangeKind", "CostDiff", "NodeChange", "diff_of"]

ChangeKind = Literal["removed", "changed", "added", "same"]
"""What happened to a node from one report to the next; ``"same"`` if it costs what it cost, at the same widths."""


@dataclass(frozen=True, slots=True)
class NodeChange:
    """One node of two reports: ``before`` is its row in the first, ``after`` its row in the second.

    ``before`` is ``None`` if the node was added, ``after`` if it was removed. ``node``, ``module`` and ``operator`` are
    those of ``before``, or of ``after`` if the node was added.
    """

    node: str
    module: str
    operator: str
    before: CostRow | None
    after: CostRow | None

    @property
    def kind(self) -> ChangeKind:
        """What happened to the node; ``"same"`` if it costs what it cost, at the same widths."""
        if self.before is None:
            return "added"
        if self.after is None:
            return "removed"
        return "same" if _costs(self.before) == _costs(self.after) else "changed"

    @property
    def saved_macs(self) -> int:
        """The MACs of one sample that the change saves; negative if there are more now."""
        return (self.before.macs if self.before else 0) - (self.after.macs if self.after else 0)

    @property
    def saved_weights(self) -> int:
        """The elements of the layer's weight that the change saves; negative if there are more now."""
        return (self.before.weight_elements if self.before else 0) - (self.after.weight_elements if self.after else 0)

    @property
    def saved_bitops(self) -> int | Fraction:
        """The bit operations of one sample that the change saves, exactly; negative if there are more."""
        return (self.before.bitops if self.before else 0) - (self.after.bitops if self.after else 0)

    @property
    def ratio(self) -> float | None:
        """Bit operations before, divided by those after; ``None`` where either are 0."""
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
        return rendered(self, "csv")

    def __str__(self) -> str:
        return rendered(self, "text")

    def _repr_html_(self) -> str:
        return rendered(self, "html")


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


def _costs(row: CostRow) -> tuple[object, ...]:
    return row.macs, row.elementwise, row.weight_bits, row.activation_bits, row.bitops
