"""Cost reports for a notebook: self-contained HTML that folds without scripts."""

from collections.abc import Sequence
from html import escape

from chainfx.bitops import CostDiff, CostReport
from chainfx.report.cost_diff import DIFF_HEADINGS, diff_cells, diff_title, diff_totals
from chainfx.report.cost_report import branch_cells, report_headings, report_title, report_totals
from chainfx.report.cost_tree import Branch, fitting_depth, tree_of

__all__ = ["diff_html", "report_html"]

_LINES = 40
# every line is a grid of its own with the same columns, so that they align at every depth of the tree
_STYLE = """\
.chainfx-cost {font-size: 90%; overflow-x: auto}
.chainfx-cost .line {display: grid; grid-template-columns: minmax(14em, 2fr) 8em 8em repeat(var(--numbers), 8.5em);
  column-gap: 1em; white-space: nowrap; min-width: max-content}
.chainfx-cost .line > :nth-child(n+4) {text-align: right; font-variant-numeric: tabular-nums}
.chainfx-cost .head {font-weight: bold; border-bottom: 1px solid}
.chainfx-cost summary {cursor: pointer}
.chainfx-cost summary > :first-child::before {content: "\\25B8\\00A0"}
.chainfx-cost details[open] > summary > :first-child::before {content: "\\25BE\\00A0"}
.chainfx-cost pre {margin: 0.5em 0; white-space: pre-wrap}
"""


def report_html(report: CostReport) -> str:
    """The tree of modules, unfolded as far as it fits a screen; every module folds on a click."""
    root = tree_of(report)
    unfolded = fitting_depth(root, _LINES)
    body = "".join(_branch(branch, report, level=0, unfolded=unfolded) for branch in root.children)
    return _page(report_title(report), report_headings(report), body, report_totals(report))


def diff_html(diff: CostDiff) -> str:
    """The nodes that changed, all of them, the one that saves most bit operations first."""
    body = "".join(f'<div class="line">{_cells(diff_cells(change))}</div>' for change in diff.changed)
    return _page(diff_title(diff), DIFF_HEADINGS, body, diff_totals(diff))


def _branch(branch: Branch, report: CostReport, *, level: int, unfolded: int) -> str:
    """A node as a line, a module as a line that opens what is inside."""
    cells = _cells(branch_cells(branch, report, folded=True), level)
    if not branch.children:
        return f'<div class="line">{cells}</div>'
    inside = "".join(_branch(child, report, level=level + 1, unfolded=unfolded) for child in branch.children)
    opened = " open" if level + 1 < unfolded else ""
    return f'<details{opened}><summary class="line">{cells}</summary>{inside}</details>'


def _cells(texts: Sequence[str], level: int = 0) -> str:
    """The cells of one line; the first is indented by its level in the tree."""
    first, *rest = (escape(text) for text in texts)
    spans = "".join(f"<span>{text}</span>" for text in rest)
    return f'<span style="padding-left: {1.5 * level}em">{first}</span>{spans}'


def _page(heading: str, columns: Sequence[str], body: str, below: Sequence[str]) -> str:
    """Everything together; the first three columns hold text, the others numbers."""
    head = f'<div class="line head">{_cells(columns)}</div>'
    table = f'<div style="--numbers: {len(columns) - 3}">{head}{body}</div>'
    return (
        f'<div class="chainfx-cost"><style>{_STYLE}</style><p>{escape(heading)}</p>{table}'
        f"<pre>{escape(chr(10).join(below))}</pre></div>"
    )
