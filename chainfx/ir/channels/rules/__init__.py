"""The rules of the channel analysis: what each operator does to labels, one file for each family of operators.

``layers`` (convolution, linear, embedding, modules) and ``norms`` make channels or have parameters along them;
``elementwise`` has views, arithmetic, reductions and pooling; ``indexing`` has slices and look-ups; ``products`` has
matrix products and attention. :func:`rule_of` gives the rule for a node.
"""

from chainfx.ir.channels.rules.layers import rule_of

__all__ = [
    "rule_of",
]
