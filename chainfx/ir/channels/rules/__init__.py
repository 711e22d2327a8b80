"""What each operator does to channels: one file for each family of operators."""

from chainfx.ir.channels.rules.layers import rule_of

__all__ = [
    "rule_of",
]
