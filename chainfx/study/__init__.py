"""Is the order right? Measures in what order passes of compression do best, on a network and data of one's own.

Start with a :class:`Design`: passes with options, the orders to try (:data:`ORDERS`), tuning, seeds, and how it is
judged; :func:`shipped_design` has the paper's experiments for the digits, :func:`load_design` reads one from YAML.
:func:`run_study` runs it in a folder, as a :class:`StudyStore` of finished stages and records, and goes on after what
is there. :func:`analyse` makes a :class:`StudyResult` of the records: a :class:`Verdict` on every pair, and
:meth:`StudyResult.law`, the order that they give, as evidence for :func:`chainfx.plan`.
"""

from chainfx.study.analysis import ArmPoint, Status, StudyResult, analyse, status_of
from chainfx.study.claims import CLAIMS, Claim, ClaimTest, claims_on
from chainfx.study.design import Budget, Case, Design, Endpoint, load_design
from chainfx.study.fronts import area_under_front, front_of
from chainfx.study.measuring import MEASURED
from chainfx.study.on_ray import RayCluster
from chainfx.study.order_law import LawEdge, MeasuredLaw
from chainfx.study.orders import ORDERS, Arm, Comparison
from chainfx.study.points import Point
from chainfx.study.predicting import (
    RULES,
    Observation,
    PairPrediction,
    Prediction,
    observations_of,
    observed,
    predict,
    validate,
)
from chainfx.study.records import CaseRecord, Origin
from chainfx.study.running import Watcher, run_study
from chainfx.study.sensitivity import StrengthVerdict, strengths_of
from chainfx.study.shipped import GridSize, shipped_design
from chainfx.study.statistics import Decision, decide, detectable, least_p
from chainfx.study.store import StudyStore
from chainfx.study.students import ContrastedStudent, FreshStudent, Recovery, UntaughtStudent
from chainfx.study.subject import Subject
from chainfx.study.tuning import StudyTrainer, Training, Tuning
from chainfx.study.verdicts import Verdict

__all__ = [
    "CLAIMS",
    "MEASURED",
    "ORDERS",
    "RULES",
    "Arm",
    "ArmPoint",
    "Budget",
    "Case",
    "CaseRecord",
    "Claim",
    "ClaimTest",
    "Comparison",
    "ContrastedStudent",
    "Decision",
    "Design",
    "Endpoint",
    "FreshStudent",
    "GridSize",
    "LawEdge",
    "MeasuredLaw",
    "Observation",
    "Origin",
    "PairPrediction",
    "Point",
    "Prediction",
    "RayCluster",
    "Recovery",
    "Status",
    "StrengthVerdict",
    "StudyResult",
    "StudyStore",
    "StudyTrainer",
    "Subject",
    "Training",
    "Tuning",
    "UntaughtStudent",
    "Verdict",
    "Watcher",
    "analyse",
    "area_under_front",
    "claims_on",
    "decide",
    "detectable",
    "front_of",
    "least_p",
    "load_design",
    "observations_of",
    "observed",
    "predict",
    "run_study",
    "shipped_design",
    "status_of",
    "strengths_of",
    "validate",
]
