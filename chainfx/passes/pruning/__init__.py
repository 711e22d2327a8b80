"""What the passes that prune have in common.

How important a unit of channels is (importance, criteria, and measurements on calibration data), which units go
(selection, targets, latency), and what happens to the layers that read them (constants, compensation).
"""

import chainfx.passes.pruning.criteria  # noqa: F401 (registers its importances)
from chainfx.passes.pruning.compensation import removed_inputs, take_over
from chainfx.passes.pruning.constants import constants_of, fold_removed
from chainfx.passes.pruning.importance import (
    Criterion,
    GroupSlices,
    get_importance,
    importance_names,
    register_importance,
    score_groups,
)
from chainfx.passes.pruning.latency import Interval, Stopwatch
from chainfx.passes.pruning.measurements import Evidence, gather
from chainfx.passes.pruning.narrowing import narrow
from chainfx.passes.pruning.selection import (
    Candidate,
    Keep,
    Ladder,
    Limits,
    Removed,
    first_step,
    removed_units,
    wanted_units,
)
from chainfx.passes.pruning.targets import COSTS, Cost, CostModel
from chainfx.passes.pruning.untouched import group_of, left_whole, name_makers
from chainfx.passes.pruning.weights import Weights

__all__ = [
    "COSTS",
    "Candidate",
    "Cost",
    "CostModel",
    "Criterion",
    "Evidence",
    "GroupSlices",
    "Interval",
    "Keep",
    "Ladder",
    "Limits",
    "Removed",
    "Stopwatch",
    "Weights",
    "constants_of",
    "first_step",
    "fold_removed",
    "gather",
    "get_importance",
    "group_of",
    "importance_names",
    "left_whole",
    "name_makers",
    "narrow",
    "register_importance",
    "removed_inputs",
    "removed_units",
    "score_groups",
    "take_over",
    "wanted_units",
]
