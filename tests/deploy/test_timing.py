import itertools
import time

import pytest

from chainfx.deploy import BenchReport, Latency, machine_facts, time_in_turns, timing


def test_percentiles_and_the_interval_of_the_median_are_those_of_the_sorted_times():
    """Of 1..100: ranks 50 -+ 0.98 sqrt(100) = 40.2 and 59.8; counted from 0 these are the values 41 and 61."""
    found = Latency.of("net", 4, [float(each) for each in range(100, 0, -1)])
    assert (found.calls, found.p50, found.p90, found.p99) == (100, 50.5, 90.0, 99.0)
    assert (found.low, found.high) == (41.0, 61.0)
    assert found.throughput == pytest.approx(4 / 50.5)


def test_one_call_is_its_own_statistics():
    found = Latency.of("net", 1, [0.5])
    assert (found.p50, found.p90, found.p99, found.low, found.high) == (0.5, 0.5, 0.5, 0.5, 0.5)


def test_calls_take_turns_until_their_time_is_over():
    order = []

    def call(name, seconds):
        order.append(name)
        time.sleep(seconds)

    found = time_in_turns({"slow": lambda: call("slow", 0.03), "fast": lambda: call("fast", 0.021)}, 2, 0.0)
    assert order == ["slow"] * 3 + ["fast"] * 3 + ["slow", "fast"] * 7
    assert [(each.network, each.batch, each.calls) for each in found] == [("slow", 2, 7), ("fast", 2, 7)]
    assert found[0].p50 >= 0.03 and 0.021 <= found[1].p50 < found[0].p50


class Clock:
    """A clock that a call moves on, by one second and by one and a half in turns."""

    def __init__(self, *seconds):
        self.now, self.seconds = 0.0, itertools.cycle(seconds)

    def call(self):
        self.now += next(self.seconds)


@pytest.mark.parametrize(("seconds", "rounds"), [((1.0,), 7), ((1.0, 1.03), 7), ((1.0, 1.5), 100)])
def test_it_ends_early_if_every_median_is_known_to_three_percent(seconds, rounds, monkeypatch):
    clock = Clock(*seconds)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    (found,) = time_in_turns({"net": clock.call}, 1, 124.5)
    assert found.calls == rounds


def test_speedups_are_ratios_of_medians_to_the_last_network():
    latencies = tuple(Latency.of(name, 8, [seconds]) for name, seconds in (("int8", 0.01), ("against", 0.04)))
    report = BenchReport(machine_facts(), ("int8", "against"), latencies)
    assert report.speedup("int8", 8) == 4.0 and report.speedup("against", 8) == 1.0
    assert report.to_dict()["latencies"][0]["p50"] == 0.01
    assert set(report.to_dict()["facts"]) == {"instructions", "threads", "torch", "chainfx"}
