"""What each threshold of the exits would give: accuracy and expected cost on held-out data."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_map_only

from chainfx.bitops import count
from chainfx.ir.graph import called, edit, exits_of, first_sure, ops, shares_of
from chainfx.passes.execution import Answers, Execution
from chainfx.passes.tasks import Task

__all__ = ["NEVER", "answers_of", "sweep_thresholds"]

NEVER = 1.01  # no confidence is above 1
_GRID = 200


def answers_of(
    graph_module: GraphModule, batches: Iterable[tuple[tuple[Tensor, ...], Any]], task: Task, execution: Execution
) -> Answers:
    """How sure every exit is of each sample of all batches, and what the task tallies of it there.

    What the network answers is not kept: the logits of a language model would not fit memory.
    """
    criteria = [mark.criterion for mark in exits_of(graph_module)]
    confidences: list[list[Tensor]] = [[] for _ in criteria]
    tallies: list[list[Tensor]] = [[] for _ in (*criteria, "final")]
    with edit.evaluating(graph_module), execution.measuring(edit.device_of(graph_module)):
        for inputs, targets in batches:
            outputs = [output.float() for output in called(graph_module, *inputs)]
            for output, criterion, sure in zip(outputs, criteria, confidences, strict=False):
                sure.append(ops.confidence(output, criterion))
            wanted = [_sample(targets, at) for at in range(len(outputs[-1]))]
            for output, found in zip(outputs, tallies, strict=True):
                found += [task.tally(*sample) for sample in zip(output.split(1), wanted, strict=True)]
    return Answers(tuple(map(torch.cat, confidences)), tuple(map(torch.stack, tallies)))


def _sample(targets: Any, at: int) -> Any:
    """The targets of one sample of a batch, as a batch."""
    return tree_map_only(Tensor, lambda tensor: tensor[at : at + 1], targets)


def sweep_thresholds(
    graph_module: GraphModule, answers: Answers, task: Task, inputs: Sequence[Tensor]
) -> list[dict[str, Any]]:
    """What thresholds from 0 to :data:`NEVER` would give, each the same for all exits, from small to large.

    Of each: ``threshold``, ``rates`` (the share of all samples that leaves, by exit), ``accuracy`` (the metric of the
    task), and ``cost``, the expected bit operations over those of the whole network with all its heads. Between the two
    ends the thresholds are quantiles of the confidences that occur, rounded down to four digits.
    """
    marks, report = exits_of(graph_module), count(graph_module, inputs)
    points = []
    for threshold in _grid(torch.cat(answers.confidences)):
        index = first_sure(answers.confidences, [threshold] * len(marks))
        rates = shares_of(index, marks)
        points.append(
            {
                "threshold": threshold,
                "accuracy": task.score(answers.sums(index)),
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
