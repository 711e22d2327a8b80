"""How long a network takes beside another: both run in turns, until a confidence interval says which side of a goal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.fx import GraphModule

from chainfx.ir.graph import edit

__all__ = ["Interval", "Stopwatch"]

_LOOKS = (9, 18, 36, 72)  # after so many turns the interval is looked at
_ERROR = 0.05


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured ratio: its median, and between ``low`` and ``high`` the true one lies with 95 % confidence."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], error: float) -> "Interval":
        """The interval of the median of independent values, which misses it with a chance of at most ``error``.

        From the k-th smallest to the k-th largest of n values, where k is the largest with ``2 P(B < k) <= error`` for
        B successes in n throws of a coin; whatever the distribution (David & Nagaraja 2003, "Order Statistics", sec.
        7.1). From the smallest to the largest if there are too few for that.

        >>> Interval.of([5.0, 1.0, 2.0, 9.0, 3.0, 4.0, 7.0, 6.0, 8.0], error=0.05)
        Interval(low=2.0, middle=5.0, high=8.0)
        """
        ordered, number = sorted(values), len(values)
        chances = [math.comb(number, successes) / 2**number for successes in range(number + 1)]
        k = 1
        while 2 * sum(chances[: k + 1]) <= error:
            k += 1
        return cls(ordered[k - 1], median(ordered), ordered[number - k])


class Stopwatch:
    """Times networks against one and the same ``baseline``, on the example inputs and the machine as busy as it is."""

    def __init__(self, baseline: GraphModule, inputs: Sequence[Tensor]) -> None:
        self._baseline = baseline
        self._inputs = tuple(inputs)

    def ratio(self, graph_module: GraphModule, goal: float) -> Interval:
        """The time that a network takes over that of the baseline.

        In every turn both run once, now this one first, now the other, and what counts is the ratio of the two, so that
        nothing that makes the machine slow for a while is taken for a difference. It ends as soon as the interval lies
        on one side of ``goal``, after 9 turns or twice that, and so on up to 72; the confidence is that of all looks
        together.
        """
        turns: list[float] = []
        with edit.evaluating(graph_module), edit.evaluating(self._baseline), torch.no_grad():
            for each in (graph_module, self._baseline):  # to warm up
                self._seconds(each)
            for number in _LOOKS:
                while len(turns) < number:
                    turns.append(self._turn(graph_module, len(turns) % 2 == 0))
                found = Interval.of(turns, _ERROR / len(_LOOKS))
                if found.high <= goal or found.low > goal:
                    break
        return found

    def _turn(self, graph_module: GraphModule, first: bool) -> float:
        if first:
            own = self._seconds(graph_module)
            return own / self._seconds(self._baseline)
        other = self._seconds(self._baseline)
        return self._seconds(graph_module) / other

    def _seconds(self, graph_module: GraphModule) -> float:
        self._wait()
        start = perf_counter()
        graph_module(*self._inputs)
        self._wait()
        return perf_counter() - start

    def _wait(self) -> None:
        """Until the device is idle: a GPU goes on after the call has returned."""
        if self._inputs[0].device.type == "cuda":
            torch.cuda.synchronize(self._inputs[0].device)
