"""Bounds on what an evaluation without data may make.

A graph is evaluated on tensors without data, which take no memory however large they are. Python's own numbers and
sequences do: no network needs more of them than these bounds allow, but a saved file could ask for any amount.
"""

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from chainfx.errors import InputError
from chainfx.ir.graph.operators import Trait, name_of, names_with

__all__ = ["check_asked", "check_made"]

_MOST_ITEMS = 2**16
_MOST_BITS = 2**12
_POWERS = (operator.pow, operator.ipow, operator.lshift, operator.ilshift)
_REPEATS = (operator.mul, operator.imul)


def check_asked(target: Any, args: Sequence[Any]) -> None:
    """Raise :class:`InputError` before a call that would make a number or a sequence beyond all bounds.

    ``target``: a function, or the name of a method. A power has at most 4,096 bits, a sequence that is repeated and the
    parts that a tensor is cut into are at most 65,536.
    """
    first, second = (*args, None, None)[:2]
    if target in _POWERS and isinstance(second, int) and not isinstance(first, Tensor):
        bits = first.bit_length() if isinstance(first, int) else 1
        _hold(bits * abs(second) <= _MOST_BITS, target, f"a number of more than {_MOST_BITS} bits")
    elif target in _REPEATS:
        for sequence, times in ((first, second), (second, first)):
            if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                _hold(len(sequence) * times <= _MOST_ITEMS, target, f"more than {_MOST_ITEMS} items")
    elif isinstance(first, Tensor) and name_of(str(getattr(target, "__name__", target))) in names_with(Trait.CUT):
        _hold(max(first.shape, default=0) <= _MOST_ITEMS, target, f"more than {_MOST_ITEMS} parts")


def check_made(target: Any, value: Any) -> None:
    """Raise :class:`InputError` for a number of more than 4,096 bits and a sequence of more than 65,536 items."""
    if isinstance(value, int):
        _hold(value.bit_length() <= _MOST_BITS, target, f"a number of more than {_MOST_BITS} bits")
    elif isinstance(value, str | list | tuple):
        _hold(len(value) <= _MOST_ITEMS, target, f"more than {_MOST_ITEMS} items")


def _hold(holds: bool, target: Any, what: str) -> None:
    if not holds:
        name = getattr(target, "__name__", target)
        raise InputError(f"the network asks {name!r} for {what}, which chainfx does not make; leave the call out.")
