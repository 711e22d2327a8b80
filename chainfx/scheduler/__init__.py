"""In what order, and what came of it: plan, runner, records."""

from chainfx.scheduler.evidence import EVIDENCE, Evidence, load_evidence
from chainfx.scheduler.law import LAW, Law
from chainfx.scheduler.plan import Edge, Finding, Plan, plan
from chainfx.scheduler.records import Costs, StageRecord
from chainfx.scheduler.report import ChainReport
from chainfx.scheduler.runner import Stage

__all__ = [
    "EVIDENCE",
    "LAW",
    "ChainReport",
    "Costs",
    "Edge",
    "Evidence",
    "Finding",
    "Law",
    "Plan",
    "Stage",
    "StageRecord",
    "load_evidence",
    "plan",
]
