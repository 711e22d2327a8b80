"""The sweep over thresholds, on logits and MACs that are worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from chainfx.ir.graph import ops
from chainfx.passes import Answers, classification
from chainfx.passes.exiting import NEVER, sweep_thresholds
from tests.bitops.graphs import graph_of

INPUTS = (torch.zeros(2, 4),)
# MACs: body 4x4, head 4x3 | body 4x5, head 5x3 | body 5x6, last layer 6x3
FIRST, SECOND, REST = 16 + 12, 20 + 15, 30 + 18
WHOLE = FIRST + SECOND + REST
CLASS_OF = (0, 2, 1)  # what exit 1, exit 2 and the final output always answer
TARGETS = torch.tensor([0, 2, 1, 1])
SURE = ((0.9, 0.6, 0.5, 0.4), (0.5, 0.8, 0.5, 0.4), (0.5, 0.5, 0.5, 0.5))


def network(x, b1, h1, b2, h2, b3, h3):
    x = F.linear(x, b1, None)
    first = ops.exit_point(F.linear(x, h1, None), "early", NEVER, "max-softmax")
    x = torch.relu(F.linear(x, b2, None))
    second = ops.exit_point(F.linear(x, h2, None), "late", NEVER, "max-softmax")
    return first, second, F.linear(F.linear(x, b3, None), h3, None)


@pytest.fixture(scope="module")
def graph_module():
    shapes = {"b1": (4, 4), "h1": (3, 4), "b2": (5, 4), "h2": (3, 5), "b3": (6, 5), "h3": (3, 6)}
    return graph_of(network, **{name: torch.zeros(shape) for name, shape in shapes.items()})


def logits():
    """For each exit logits (4, 3): the softmax gives its class the confidences above, the others half of the rest."""
    parts = []
    for answer, confidences in zip(CLASS_OF, SURE, strict=True):
        rows = torch.tensor([[(1 - sure) / 2] * 3 for sure in confidences])
        rows[:, answer] = torch.tensor(confidences)
        parts.append(rows.log())
    return tuple(parts)


def answers(parts):
    """What is kept of logits: confidences of the exits, and for each sample whether it is right, of one."""
    sure = tuple(ops.confidence(part, "max-softmax") for part in parts[:-1])
    right = (part.argmax(1) == TARGETS for part in parts)
    return Answers(sure, tuple(torch.stack([each, torch.ones(4)], 1).double() for each in right))


@pytest.mark.parametrize(
    ("above", "below", "rates", "cost", "accuracy"),
    [
        # nobody is below 0: all leave at the first exit, whose answer is right for one of four
        (-1, 0.01, (1, 0), FIRST, 0.25),
        # samples 1 and 2 leave at the first exit (the second one wrongly); half go on, and nobody leaves at the second
        (0.51, 0.59, (0.5, 0), FIRST + 0.5 * (SECOND + REST), 0.75),
        # sample 1 leaves at the first exit, sample 2 at the second, both rightly; half run to the end
        (0.61, 0.79, (0.25, 0.25), FIRST + 0.75 * SECOND + 0.5 * REST, 1.0),
        # only sample 1 leaves; the final output is wrong for sample 2
        (0.81, 0.89, (0.25, 0), FIRST + 0.75 * (SECOND + REST), 0.75),
        # nobody is surer than 1: all run to the end
        (1, 2, (0, 0), WHOLE, 0.5),
    ],
)
def test_rates_cost_and_accuracy_of_every_threshold(graph_module, above, below, rates, cost, accuracy):
    points = sweep_thresholds(graph_module, answers(logits()), classification(), INPUTS)
    found = [point for point in points if above < point["threshold"] < below]
    assert found
    for point in found:
        assert point["rates"] == dict(zip(("early", "late"), rates, strict=True))
        assert point["cost"] == pytest.approx(cost / WHOLE, rel=1e-12)
        assert point["accuracy"] == accuracy


def test_thresholds_rise_from_zero_and_are_rounded_down_to_four_digits(graph_module):
    thresholds = [
        point["threshold"] for point in sweep_thresholds(graph_module, answers(logits()), classification(), INPUTS)
    ]
    assert thresholds == sorted(set(thresholds)) and (thresholds[0], thresholds[-1]) == (0.0, NEVER)
    assert all(math.isclose(value * 1e4, round(value * 1e4), abs_tol=1e-6) for value in thresholds)
    assert thresholds[1] <= 0.4 and 0.8999 <= thresholds[-2] <= 0.9


def test_a_sample_whose_confidence_is_no_number_runs_to_the_end_at_every_threshold(graph_module):
    parts = logits()
    parts[0][0] = math.nan
    parts[1][0] = math.nan
    points = sweep_thresholds(graph_module, answers(parts), classification(), INPUTS)
    assert all(math.isfinite(point["threshold"]) for point in points) and len(points) > 2
    assert points[0]["rates"] == {"early": 0.75, "late": 0.0}
    assert points[0]["cost"] == pytest.approx((FIRST + 0.25 * (SECOND + REST)) / WHOLE)


def test_confidences_that_are_no_numbers_leave_only_the_two_ends(graph_module):
    parts = logits()
    for part in parts[:-1]:
        part.fill_(math.nan)
    points = sweep_thresholds(graph_module, answers(parts), classification(), INPUTS)
    assert [point["threshold"] for point in points] == [0.0, NEVER]
    assert all(point["cost"] == 1.0 and point["accuracy"] == 0.5 for point in points)
