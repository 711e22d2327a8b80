"""How fast networks are, side by side: the same inputs, in one process, in turns."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from chainfx.deploy.integers import Machine
from chainfx.rendering import rendered
from chainfx.version import __version__

__all__ = ["BenchReport", "Latency", "machine_facts", "time_in_turns"]

_LEAST_ROUNDS = 7
_WARM_UP = 3
_CALLS_A_ROUND = 0.02  # seconds that one contender has in a round, at least one call
_ENOUGH = 0.03  # half the confidence interval of the median, as a share of it


@dataclass(frozen=True, slots=True)
class Latency:
    """How long calls of one network with one batch size took, in seconds.

    ``p50``, ``p90``, ``p99``: the times that so many percent of the ``calls`` did not exceed. ``low`` and ``high``: the
    95 % confidence interval of the median. ``throughput``: samples a second at the median.
    """

    network: str
    batch: int
    calls: int
    p50: float
    p90: float
    p99: float
    low: float
    high: float
    throughput: float

    @classmethod
    def of(cls, network: str, batch: int, seconds: Sequence[float]) -> "Latency":
        """The statistics of single calls.

        The interval is that of order statistics (Hahn and Meeker 1991, sec. 5.2): between the values of rank
        ``n/2 -+ 0.98 sqrt(n)``, which assumes nothing of the distribution.

        >>> Latency.of("net", 8, [0.4, 0.1, 0.2]).throughput
        40.0
        """
        times = sorted(seconds)
        count, median = len(times), statistics.median(times)
        spread = 0.98 * math.sqrt(count)
        low = times[max(0, math.floor(count / 2 - spread))]
        high = times[min(count - 1, math.ceil(count / 2 + spread))]
        p90, p99 = (times[min(count - 1, math.ceil(share * count) - 1)] for share in (0.9, 0.99))
        return cls(network, batch, count, median, p90, p99, low, high, batch / median)


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Times of networks that took turns in one process; ``print`` shows them.

    ``facts``: inputs, instructions, threads and versions, by name. ``networks``: their names, in the order of their
    turns. ``latencies``: one for each network and batch size.
    """

    facts: Mapping[str, str]
    networks: tuple[str, ...]
    latencies: tuple[Latency, ...]

    def __str__(self) -> str:
        return rendered(self, "text")

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON, times in seconds."""
        return {
            "facts": dict(self.facts),
            "networks": list(self.networks),
            "latencies": [asdict(latency) for latency in self.latencies],
        }

    def speedup(self, network: str, batch: int) -> float:
        """How many times faster a network is than the last one, by the medians at one batch size."""
        found = {(each.network, each.batch): each.p50 for each in self.latencies}
        return found[self.networks[-1], batch] / found[network, batch]


def machine_facts() -> dict[str, str]:
    """What times depend on beside the network: instructions, threads, and versions."""
    return {
        "instructions": Machine.here().instructions,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "chainfx": __version__,
    }


def time_in_turns(calls: Mapping[str, Callable[[], object]], batch: int, seconds: float) -> list[Latency]:
    """Time calls that take turns, so that whatever slows the machine down meets all of them alike.

    After warming up, each has some calls in every round. It ends when the confidence interval of every median lies
    within 3 % of it, or after about ``seconds`` for each.
    """
    for call in calls.values():
        for _ in range(_WARM_UP):
            call()
    seen: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds * len(calls)
    rounds = 0
    while True:
        for name, call in calls.items():
            _one_round(call, seen[name])
        rounds += 1
        found = [Latency.of(name, batch, times) for name, times in seen.items()]
        sure = all(each.high - each.low <= 2 * _ENOUGH * each.p50 for each in found)
        if rounds >= _LEAST_ROUNDS and (sure or time.perf_counter() > end):
            return found


def _one_round(call: Callable[[], object], seen: list[float]) -> None:
    end = time.perf_counter() + _CALLS_A_ROUND
    while True:
        begin = time.perf_counter()
        call()
        now = time.perf_counter()
        seen.append(now - begin)
        if now >= end:
            return
