"""Cost reports as comma-separated values, for spreadsheets and data frames."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from chainfx.bitops import CostDiff, CostReport, CostRow, NodeChange, Uncounted

__all__ = ["diff_csv", "report_csv"]

_COSTS = (
    "macs",
    "nonzero_macs",
    "elementwise",
    "weight_bits",
    "activation_bits",
    "weight_elements",
    "bitops",
    "moved_bits",
)
_NAMES = ("node", "module", "operator")
_REPORT = (*_NAMES, "output", *_COSTS, "pattern", "segment", "branch", "convention", "not_counted")
_DIFF = (*_NAMES, "change", *(f"{cost}_{side}" for cost in _COSTS for side in ("before", "after")), "convention")


def report_csv(report: CostReport) -> str:
    """One line a node, headings first; numbers are of one sample, and the convention stands in every line.

    A node that nobody could count has no numbers, and the reason in the last column.
    """
    lines: list[dict[str, object]] = [
        {
            **_names(row),
            "output": "x".join(map(str, row.shape)),
            **_costs(row),
            **{name: getattr(row, name) for name in ("pattern", "segment", "branch")},
        }
        for row in report.rows
    ]
    lines += [{**_names(item), "not_counted": item.reason} for item in report.uncounted]
    return _written(_REPORT, [{**line, "convention": report.convention} for line in lines])


def diff_csv(diff: CostDiff) -> str:
    """One line a node that changed, the one that saves most bit operations first; what is not there is empty."""
    lines = [
        {
            **_names(change),
            "change": change.kind,
            **_costs(change.before, "_before"),
            **_costs(change.after, "_after"),
            "convention": diff.before.convention,
        }
        for change in diff.changed
    ]
    return _written(_DIFF, lines)


def _names(item: CostRow | Uncounted | NodeChange) -> dict[str, object]:
    return {"node": item.node, "module": item.module, "operator": item.operator}


def _costs(row: CostRow | None, side: str = "") -> dict[str, object]:
    """The numbers of a row, whole where they are and else the nearest float."""
    found = {} if row is None else {cost: getattr(row, cost) for cost in _COSTS}
    return {cost + side: _plain(value) for cost, value in found.items()}


def _plain(value: object) -> object:
    if not isinstance(value, Fraction):
        return value
    return value.numerator if value.denominator == 1 else float(value)


def _written(headings: Sequence[str], lines: Iterable[Mapping[str, object]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, headings, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()
