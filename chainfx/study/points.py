"""What a study measures of a finished stage: accuracy on the part that judges, and cost, at every threshold."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.fx import GraphModule

from chainfx.ir.graph import answer_of, choose, device_of, evaluating, exits_of
from chainfx.passes import Task
from chainfx.scheduler import Stage
from chainfx.study.measuring import Bench
from chainfx.training import Batches

__all__ = ["CONVENTIONS", "Point", "points_of"]

CONVENTIONS = ("mac_bw_ba", "strict")
"""The conventions under which every point has its bit operations."""


@dataclass(frozen=True, slots=True)
class Point:
    """A compressed network as a point of a study.

    ``threshold``: of all its exits, ``None`` without exits. ``accuracy`` on the part that judges, or whatever the task
    measures, negative where less of it is better; ``test``: the same on the test part, for reports alone. ``bitops``:
    expected for one sample, by convention, with the exit rates that were measured on the part that judges.
    ``measured``: by name what :data:`~chainfx.study.MEASURED` lists, where the design asks for it.
    """

    threshold: float | None
    accuracy: float
    test: float
    bitops: Mapping[str, float] = dataclasses.field(hash=False)
    measured: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The point that ``dataclasses.asdict`` wrote."""
        return cls(
            plain["threshold"], plain["accuracy"], plain["test"], plain["bitops"], dict(plain.get("measured", {}))
        )


def points_of(
    stage: Stage,
    judging: Batches,
    testing: Batches,
    thresholds: Sequence[float],
    conventions: Iterable[str],
    task: Task,
    bench: Bench | None = None,
) -> tuple[Point, ...]:
    """The points of a stage: one, or one for each threshold if it has exits; with a bench, times and sizes too."""
    graph_module, report = stage.graph_module, stage.record.report
    assert report is not None  # only records of chainfx 0.1 have none
    marks = exits_of(graph_module)
    parts = [_outputs(graph_module, batches) for batches in (judging, testing)]
    points = []
    for threshold in thresholds if marks else (None,):
        set_to = tuple(mark if threshold is None else dataclasses.replace(mark, threshold=threshold) for mark in marks)
        chosen = [choose(logits, set_to) for logits, _ in parts]
        accuracies = [_score(task, *part, index) for part, index in zip(parts, chosen, strict=True)]
        counts = torch.bincount(chosen[0], minlength=len(marks) + 1)
        rates = {mark.name: int(count) / len(chosen[0]) for mark, count in zip(marks, counts, strict=False)}
        bitops = {name: float(report.reprice(name, exit_rates=rates).expected_bitops) for name in conventions}
        measured = {} if bench is None else bench.measured(stage, threshold)
        points.append(Point(threshold, accuracies[0], accuracies[1], bitops, measured))
    return tuple(points)


def _outputs(graph_module: GraphModule, batches: Batches) -> tuple[tuple[Tensor, ...], Tensor]:
    """The logits (N, classes) of every output, and the targets (N,)."""
    device, outputs, targets = device_of(graph_module), [], []
    with evaluating(graph_module), torch.no_grad():
        for inputs, labels in batches:
            found = graph_module(*(tensor.to(device) for tensor in inputs))
            outputs.append(found if isinstance(found, tuple) else (found,))
            targets.append(labels)
    return tuple(torch.cat(each).cpu() for each in zip(*outputs, strict=True)), torch.cat(targets).cpu()


def _score(task: Task, outputs: tuple[Tensor, ...], targets: Tensor, index: Tensor) -> float:
    """What the task measures of the output that each sample takes; negative where less is better."""
    answers = outputs[0] if len(outputs) == 1 else answer_of(outputs, index)
    found = task.score(task.tally(answers, targets))
    return found if task.metric.higher_is_better else -found
