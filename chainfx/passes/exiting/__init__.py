"""What early exits are made of: places, heads and thresholds."""

from chainfx.passes.exiting.head import ExitHead, insert_head
from chainfx.passes.exiting.taps import balanced_taps, exit_places, named_taps
from chainfx.passes.exiting.thresholds import NEVER, answers_of, score_of, sweep_thresholds

__all__ = [
    "NEVER",
    "ExitHead",
    "answers_of",
    "balanced_taps",
    "exit_places",
    "insert_head",
    "named_taps",
    "score_of",
    "sweep_thresholds",
]
