"""How is it shown? Every table, tree, HTML page, CSV and text of a value is made in this room.

You seldom call it: ``print`` a cost report, a diff, a cross-check, a plan, a channel analysis or the report of a chain,
let a notebook show it, or call its ``to_csv()`` or ``table()``. The value asks :mod:`chainfx.rendering` for the
renderer of its class, and the lines at the end of this file say which one that is; ``import chainfx`` runs them. Each
file is named after the value that it shows.

Start with :func:`render`, which prints a cost report with options of your own: how deep the tree of modules is
unfolded, and by what it is sorted. JSON is not made here: it is part of a value, ``to_dict()``.
"""

from chainfx.bitops import CostDiff, CostReport, CrossCheck
from chainfx.deploy import BenchReport, Lowering
from chainfx.ir.channels import ChannelAnalysis
from chainfx.linting import Explanation, LintReport
from chainfx.passes import PassSummary
from chainfx.rendering import register_renderer
from chainfx.report.bench import bench_text
from chainfx.report.chain_report import chain_table, chain_text
from chainfx.report.channel_analysis import channels_text
from chainfx.report.cost_csv import diff_csv, report_csv
from chainfx.report.cost_diff import diff_text
from chainfx.report.cost_html import diff_html, report_html
from chainfx.report.cost_report import render
from chainfx.report.crosscheck import cross_check_text
from chainfx.report.demo import DemoRow, demo_headline, demo_table
from chainfx.report.explanation import explanation_text
from chainfx.report.lint_report import lint_text
from chainfx.report.lowering import lowering_text
from chainfx.report.pass_summary import summary_text
from chainfx.report.plan import edge_text, finding_text, plan_text
from chainfx.report.search import search_text
from chainfx.report.study import design_text, law_text, result_text, status_text
from chainfx.report.study_claims import claim_text
from chainfx.report.study_html import result_html
from chainfx.report.study_png import write_plots
from chainfx.report.study_prediction import prediction_text
from chainfx.scheduler import ChainReport, Edge, Finding, Plan
from chainfx.search import SearchResult
from chainfx.study import Claim, Design, MeasuredLaw, Prediction, Status, StudyResult

__all__ = ["DemoRow", "demo_headline", "demo_table", "render", "write_plots"]

register_renderer(BenchReport, "text", bench_text)
register_renderer(ChainReport, "text", chain_text)
register_renderer(ChainReport, "table", chain_table)
register_renderer(ChannelAnalysis, "text", channels_text)
register_renderer(Claim, "text", claim_text)
register_renderer(CostDiff, "text", diff_text)
register_renderer(CostDiff, "html", diff_html)
register_renderer(CostDiff, "csv", diff_csv)
register_renderer(CostReport, "text", render)
register_renderer(CostReport, "html", report_html)
register_renderer(CostReport, "csv", report_csv)
register_renderer(CrossCheck, "text", cross_check_text)
register_renderer(Design, "text", design_text)
register_renderer(Edge, "text", edge_text)
register_renderer(Explanation, "text", explanation_text)
register_renderer(Finding, "text", finding_text)
register_renderer(LintReport, "text", lint_text)
register_renderer(Lowering, "text", lowering_text)
register_renderer(MeasuredLaw, "text", law_text)
register_renderer(PassSummary, "text", summary_text)
register_renderer(Plan, "text", plan_text)
register_renderer(Prediction, "text", prediction_text)
register_renderer(SearchResult, "text", search_text)
register_renderer(Status, "text", status_text)
register_renderer(StudyResult, "text", result_text)
register_renderer(StudyResult, "html", result_html)
