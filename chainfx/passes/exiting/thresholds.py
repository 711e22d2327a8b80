"""What each threshold of the exits would give: accuracy and expected cost on held-out data."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from chainfx.bitops import count
from chainfx.ir.graph import answer_of, called, choose, edit, exits_of, ops, shares_of
from chainfx.passes.execution import Answers, Execution
from chainfx.passes.tasks import Task

__all__ = ["NEVER", "answers_of", "score_of", "sweep_thresholds"]

NEVER = 1.01  # no confidence is above 1
_GRID = 200


def answers_of(
    graph_module: GraphModule, batches: Iterable[tuple[tuple[Tensor, ...], Any]], execution: Execution
) -> Answers:
    """The answers (N, ...) of every exit and of the final output over all batches, and the targets (N, ...)."""
    with edit.evaluating(graph_module), execution.measuring(edit.device_of(graph_module)):
        found = [(called(graph_module, *inputs), targets) for inputs, targets in batches]
    outputs = zip(*(answers for answers, _ in found), strict=True)
    return Answers(tuple(torch.cat(parts).float() for parts in outputs), torch.cat([targets for _, targets in found]))


def score_of(task: Task, answers: Tensor, targets: Any) -> float:
    """The metric of a task for answers to all samples, such as the share of those that are right."""
    return task.score(task.tally(answers, targets))


def sweep_thresholds(
    graph_module: GraphModule, answers: Answers, task: Task, inputs: Sequence[Tensor]
) -> list[dict[str, Any]]:
    """What thresholds from 0 to :data:`NEVER` would give, each the same for all exits, from small to large.

    Of each: ``threshold``, ``rates`` (the share of all samples that leaves, by exit), ``accuracy`` (the metric of the
    task), and ``cost``, the expected bit operations over those of the whole network with all its heads. Between the two
    ends the thresholds are quantiles of the confidences that occur, rounded down to four digits.
    """
    marks, report, outputs = exits_of(graph_module), count(graph_module, inputs), answers.outputs
    points = []
    for threshold in _grid(torch.cat([ops.confidence(part, marks[0].criterion) for part in outputs[:-1]])):
        index = choose(outputs, tuple(replace(mark, threshold=threshold) for mark in marks))
        rates = shares_of(index, marks)
        points.append(
            {
                "threshold": threshold,
                "accuracy": score_of(task, answer_of(outputs, index), answers.targets),
                "cost": report.reprice(exit_rates=rates).expected_bitops / report.bitops,
                "rates": rates,
            }
        )
    return points


def _grid(confidences: Tensor) -> tuple[float, ...]:
    """The thresholds to try; a confidence that is no number is none that a sample could leave with."""
    numbers = confidences.double()[~confidences.isnan()]
    if not len(numbers):
        return 0.0, NEVER
    quantiles = torch.quantile(
        numbers, torch.linspace(0, 1, _GRID, dtype=torch.float64, device=numbers.device)
    ).tolist()
    return 0.0, *sorted({math.floor(value * 1e4) / 1e4 for value in quantiles}), NEVER
