"""chainfx: compress trained networks by chaining FX graph passes in a measured order."""

from chainfx import bitops, errors, ir, linting, passes, report, scheduler
from chainfx.benchmark import bench
from chainfx.bitops import CostReport
from chainfx.compiler import compile, count
from chainfx.deploy import CompressedModel, load
from chainfx.ir.capture import capture
from chainfx.linting import LintReport, lint
from chainfx.scheduler import Plan, plan
from chainfx.search import Range, Search, SearchResult
from chainfx.version import __version__ as __version__

__all__ = [
    "CompressedModel",
    "CostReport",
    "LintReport",
    "Plan",
    "Range",
    "Search",
    "SearchResult",
    "bench",
    "bitops",
    "capture",
    "compile",
    "count",
    "errors",
    "ir",
    "lint",
    "linting",
    "load",
    "passes",
    "plan",
    "report",
    "scheduler",
]
