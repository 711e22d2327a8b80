"""In what order do passes go, and what came of each? The plan, the runner that follows it, and the records it leaves.

Start with :func:`plan`: it sorts passes into a :class:`Plan`, in which every :class:`Edge` (this pass before that one)
carries its reason and its source. Edges come from the law (:data:`LAW`: static before dynamic, large before small),
from evidence about pairs of passes (:data:`EVIDENCE`, or your own with :func:`load_evidence`), and from the facts that
passes establish and require. A given order can be checked instead: what it breaks is a :class:`Finding` for every two
passes; :func:`chainfx.lint` finds more.

:func:`run` then applies the passes one by one. Every :class:`Stage` is a graph with its :class:`StageRecord`, which
says what was applied, what the network costs now (:class:`Costs`) and how accurate it is; a :class:`StageStore` keeps
finished stages in a folder, so that a second run goes on after them. All records of a chain together are its
:class:`ChainReport`. :func:`chainfx.compile` does all of this in one call.
"""

from chainfx.scheduler.chain import ChainReport
from chainfx.scheduler.edges import Edge
from chainfx.scheduler.evidence import EVIDENCE, LOSSY, Evidence, gather, load_evidence
from chainfx.scheduler.evidence_names import check_evidence
from chainfx.scheduler.fact_checks import check_applied, lost_facts
from chainfx.scheduler.findings import SEVERITIES, Finding, Severity, worst
from chainfx.scheduler.ground import Ground, machine_kind
from chainfx.scheduler.keys import StageKey, Surroundings
from chainfx.scheduler.law import LAW, Law
from chainfx.scheduler.needs import unserved_needs
from chainfx.scheduler.planning import Plan, plan
from chainfx.scheduler.records import Costs, Stage, StageRecord
from chainfx.scheduler.runner import Listener, StageRunner, run
from chainfx.scheduler.store import StageStore, open_stage

__all__ = [
    "EVIDENCE",
    "LAW",
    "LOSSY",
    "SEVERITIES",
    "ChainReport",
    "Costs",
    "Edge",
    "Evidence",
    "Finding",
    "Ground",
    "Law",
    "Listener",
    "Plan",
    "Severity",
    "Stage",
    "StageKey",
    "StageRecord",
    "StageRunner",
    "StageStore",
    "Surroundings",
    "check_applied",
    "check_evidence",
    "gather",
    "load_evidence",
    "lost_facts",
    "machine_kind",
    "open_stage",
    "plan",
    "run",
    "unserved_needs",
    "worst",
]
