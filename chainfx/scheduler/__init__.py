"""In what order, and what came of it: plan, runner, records."""

from chainfx.scheduler.chain import ChainReport
from chainfx.scheduler.evidence import EVIDENCE, Evidence, load_evidence
from chainfx.scheduler.keys import StageKey, Surroundings
from chainfx.scheduler.law import LAW, Law
from chainfx.scheduler.planning import Edge, Finding, Plan, plan
from chainfx.scheduler.records import Costs, Stage, StageRecord
from chainfx.scheduler.runner import Listener, run
from chainfx.scheduler.store import StageStore, open_stage

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
    "StageKey",
    "StageRecord",
    "StageStore",
    "Surroundings",
    "load_evidence",
    "open_stage",
    "plan",
    "run",
]
