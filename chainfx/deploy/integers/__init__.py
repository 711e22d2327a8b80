"""Networks in integers: which layers can, what the kernels take over from float, and the table that says so.

:func:`lower_to_integers` is the entry. It asks the file ``choice`` for each layer whether it can, moves quantizers to
where values are made (``moving``), finds what goes into one kernel (``chains``), and puts modules in place that call it
(``layers``, ``kernels``) with codes between them (``grids``).
"""

from chainfx.deploy.integers.lowering import Engine, Lowered, Lowering
from chainfx.deploy.integers.machine import Machine
from chainfx.deploy.integers.rewriting import lower_to_integers, mark_overwrites, of_torchao, why_in_float

__all__ = [
    "Engine",
    "Lowered",
    "Lowering",
    "Machine",
    "lower_to_integers",
    "mark_overwrites",
    "of_torchao",
    "why_in_float",
]
