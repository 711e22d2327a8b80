"""Pruning to a latency: networks are timed in turns with the original, to a confidence interval, by a clock of ours."""

import copy
import random
from dataclasses import replace
from itertools import count
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainfx.errors import PassError
from chainfx.ir.capture.ways import capture
from chainfx.passes.base import PassContext
from chainfx.passes.prune_channels import PruneChannels
from chainfx.passes.pruning import latency
from chainfx.passes.pruning.latency import Interval, Stopwatch
from tests.nets import images, warm


class Clock:
    """Time that passes only in BatchNorms, one unit for each channel, times what ``load`` gives for the run."""

    def __init__(self, load=lambda: 1.0):
        self.now, self.load, self.runs, self.reads = 0.0, load, [], 0

    def __call__(self):
        self.reads += 1
        return self.now

    def pass_by(self, channels):
        self.runs.append(channels)
        self.now += channels * self.load()


@pytest.fixture
def clock(monkeypatch):
    def put(load=lambda: 1.0):
        made = Clock(load)
        run = F.batch_norm

        def timed(x, *args, **options):
            made.pass_by(x.shape[1])
            return run(x, *args, **options)

        monkeypatch.setattr(F, "batch_norm", timed)
        monkeypatch.setattr(latency, "perf_counter", made)
        return made

    return put


def prepared():
    """One group of 20 channels that goes through the only BatchNorm."""
    torch.manual_seed(0)
    net = warm(nn.Sequential(nn.Conv2d(1, 20, 1), nn.BatchNorm2d(20), nn.Flatten(), nn.Linear(20 * 16, 3)))
    x = (images(2, 4),)
    graph_module = copy.deepcopy(capture(net, x))
    return graph_module, PassContext(copy.deepcopy(graph_module), x)


def applied(one):
    graph_module, context = prepared()
    return one.apply(graph_module, context)


def noise(seed, spread):
    generator = random.Random(seed)
    return lambda: 1 + spread * generator.random()


def test_the_interval_of_a_median_is_between_order_statistics():
    values = [7.0, 3.0, 9.0, 1.0, 5.0, 8.0, 2.0, 6.0, 4.0]
    # 2 P(B < 2) for nine throws of a coin is 20 / 512 = 0.039, 2 P(B < 3) is 92 / 512 = 0.18
    assert Interval.of(values, 0.05) == Interval(2.0, 5.0, 8.0)
    assert Interval.of(values, 0.2) == Interval(3.0, 5.0, 7.0)
    assert Interval.of(values, 0.01) == Interval.of(values, 1e-9) == Interval(1.0, 5.0, 9.0)


def test_the_interval_misses_the_median_as_seldom_as_it_says():
    generator = random.Random(0)
    samples = [[generator.expovariate(1.0) for _ in range(36)] for _ in range(2000)]
    missed = sum(not found.low <= 0.6931 <= found.high for found in (Interval.of(each, 0.05) for each in samples))
    assert 0.02 < missed / 2000 < 0.05


@pytest.mark.parametrize(("goal", "turns"), [(0.4, 9), (0.5, 9), (0.6, 9)])
def test_a_clear_answer_takes_nine_turns_in_which_each_goes_first_by_turns(clock, goal, turns):
    clock = clock()
    graph_module, context = prepared()
    half = PruneChannels(0.5).apply(copy.deepcopy(graph_module), context).graph_module
    found = Stopwatch(graph_module, context.example_inputs).ratio(half, goal)
    assert found == Interval(0.5, 0.5, 0.5)
    assert clock.runs[-2 * turns :] == ([10, 20, 20, 10] * turns)[: 2 * turns]


def test_an_unclear_answer_takes_more_turns_up_to_a_limit(clock):
    clock = clock(noise(0, 0.5))
    graph_module, context = prepared()
    half = PruneChannels(0.5).apply(copy.deepcopy(graph_module), context).graph_module
    clock.runs.clear()
    found = Stopwatch(graph_module, context.example_inputs).ratio(half, 0.5)
    assert len(clock.runs) == 2 * (1 + 72) and found.low < 0.5 < found.high and found.high - found.low < 0.2


def test_a_machine_that_becomes_slow_is_no_difference_between_networks(clock):
    """Twice as slow from the tenth run on, and eight times from the thirteenth: one after the other would mislead."""
    graph_module, context = prepared()
    half = PruneChannels(0.5).apply(copy.deepcopy(graph_module), context).graph_module
    runs = count()
    clock(lambda: 1 if (run := next(runs)) < 10 else 2 if run < 13 else 8)
    assert Stopwatch(graph_module, context.example_inputs).ratio(half, 0.7).middle == 0.5


@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_the_least_pruning_that_is_fast_enough_is_found(clock, scope):
    clock()
    result = applied(PruneChannels(latency=0.61, scope=scope))
    assert result.graph_module.get_parameter("0.weight").shape[0] == 12
    assert result.profile["latency"] == 0.6 and result.profile["latency_interval"] == [0.6, 0.6]
    assert result.profile["removed"] == 8


@pytest.mark.parametrize("seed", range(3))
def test_by_a_noisy_clock_no_target_is_reported_that_was_not_reached(clock, seed):
    clock(noise(seed, 0.2))
    result = applied(PruneChannels(latency=0.5))
    kept = result.graph_module.get_parameter("0.weight").shape[0]
    low, high = result.profile["latency_interval"]
    assert low <= result.profile["latency"] <= high <= 0.5
    assert 7 <= kept <= 10  # in truth 10 of 20 are exactly half


def test_a_choice_that_is_fast_enough_only_once_is_made_narrower(clock):
    """While it searches the pruned networks seem fast, and afterwards what they are."""
    runs, made = count(), clock()
    made.load = lambda: 0.5 if next(runs) < 100 and made.runs[-1] < 20 else 1.0
    result = applied(PruneChannels(latency=0.5))
    kept = result.graph_module.get_parameter("0.weight").shape[0]
    assert kept <= 10 and result.profile["latency"] == kept / 20


def test_a_target_that_is_not_reached_says_how_far_one_gets(clock):
    clock()
    with pytest.raises(PassError) as caught:
        applied(PruneChannels(latency=0.4, max_ratio=0.5))
    assert str(caught.value) == (
        "prune-channels: latency=0.4 was not reached; with as few units as max_ratio, round_to, include and skip "
        "allow, 0.5000 to 0.5000 of the time is left: use 0.5 or more."
    )


def test_all_of_the_time_is_reached_without_a_look_at_the_clock(clock):
    clock = clock()
    result = applied(PruneChannels(latency=1.0))
    assert not result.modified and not clock.reads and result.profile["latency"] == 1


def test_rounds_are_timed_against_the_network_as_it_entered(clock):
    clock()
    graph_module, context = prepared()
    entry, step, found = copy.deepcopy(graph_module), PruneChannels(latency=0.5, rounds=2), []
    for number in range(2):
        result = step.apply(graph_module, replace(context, round=number, entry=entry))
        graph_module = result.graph_module
        found.append((graph_module.get_parameter("0.weight").shape[0], result.profile["latency"]))
    assert found == [(15, 0.75), (10, 0.5)]


def test_a_real_clock_times_real_networks_and_changes_nothing():
    graph_module, context = prepared()
    before = {name: value.clone() for name, value in graph_module.state_dict().items()}
    found = Stopwatch(graph_module, context.example_inputs).ratio(copy.deepcopy(graph_module), 1e-9)
    assert 0 < found.low <= found.middle == median([found.middle]) <= found.high
    assert all(torch.equal(value, before[name]) for name, value in graph_module.state_dict().items())
