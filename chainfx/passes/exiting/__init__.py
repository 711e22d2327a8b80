"""What early exits are made of: places, heads and thresholds."""

from chainfx.passes.exiting.head import ExitHead, insert_head
from chainfx.passes.exiting.position_heads import fits_answer, insert_pixel_head, insert_token_head
from chainfx.passes.exiting.taps import balanced_taps, exit_places, named_taps
from chainfx.passes.exiting.thresholds import NEVER, answers_of, sweep_thresholds

__all__ = [
    "NEVER",
    "ExitHead",
    "answers_of",
    "balanced_taps",
    "exit_places",
    "fits_answer",
    "insert_head",
    "insert_pixel_head",
    "insert_token_head",
    "named_taps",
    "sweep_thresholds",
]
