"""How values are shown: every table, tree, HTML page, CSV and text. Importing it registers the renderers."""

from chainfx.bitops import CostDiff, CostReport
from chainfx.rendering import register_renderer
from chainfx.report.csv import diff_sheet, report_sheet
from chainfx.report.diff import render_diff
from chainfx.report.html import diff_html, report_html
from chainfx.report.table import render

__all__ = ["diff_html", "diff_sheet", "render", "render_diff", "report_html", "report_sheet"]

register_renderer(CostReport, "text", render)
register_renderer(CostReport, "html", report_html)
register_renderer(CostReport, "csv", report_sheet)
register_renderer(CostDiff, "text", render_diff)
register_renderer(CostDiff, "html", diff_html)
register_renderer(CostDiff, "csv", diff_sheet)
