"""In what order, and what came of it: plan, runner, records."""

from chainfx.scheduler.chain import ChainReport
from chainfx.scheduler.evidence import EVIDENCE, Evidence, load_evidence
from chainfx.scheduler.fact_checks import check_applied
from chainfx.scheduler.law import LAW, Law
from chainfx.scheduler.planning import Edge, Finding, Plan, plan
from chainfx.scheduler.records import Costs, StageRecord, StageStore
from chainfx.scheduler.runner import Listener, Stage, run

__all__ = [
    "EVIDENCE",
    "LAW",
    "ChainReport",
    "Costs",
    "Edge",
    "Evidence",
    "Finding",
    "Law",
    "Listener",
    "Plan",
    "Stage",
    "StageRecord",
    "StageStore",
    "check_applied",
    "load_evidence",
    "plan",
    "run",
]
