"""Is this chain a good idea, and what would be better? Advice before anything is trained.

:func:`lint` looks at a list of passes, and at the network if there is one: at their order, at what each needs and
loses, at whether accuracy can recover between them, at what this machine gains from them. It gives a
:class:`LintReport` of findings, the worst first, each with its source and what to do, and a corrected chain; with a
network also what every stage will cost. What it knows of pairs of passes is the evidence of the scheduler, so that it
says of an order what :func:`chainfx.plan` does. :func:`explain` goes the other way: it takes a network and says what
each pass could do to it.

A rule is a function of a :class:`Chain`; they stand in ``chain_rules.py`` (what follows from the passes alone) and
``network_rules.py`` (what follows from the machine and the network). :func:`sarif` writes findings in the form that
code hosts show beside the lines of a file.
"""

from chainfx.linting.chain import Chain
from chainfx.linting.explaining import Explanation, PassOutlook, explain
from chainfx.linting.linter import LintReport, findings_of, lint
from chainfx.linting.machine import Machine
from chainfx.linting.network import Network
from chainfx.linting.predicting import StagePrediction
from chainfx.linting.sarif_log import sarif

__all__ = [
    "Chain",
    "Explanation",
    "LintReport",
    "Machine",
    "Network",
    "PassOutlook",
    "StagePrediction",
    "explain",
    "findings_of",
    "lint",
    "sarif",
]
