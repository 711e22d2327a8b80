"""What is measured of a network on data: its metric, its exit rates, in one walk, without gradients."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.ir.graph import answer_of, choose, exits_of, shares_of
from chainfx.passes import Execution, Measurement, Task
from chainfx.training.checks import answers, scored
from chainfx.training.data import Batch
from chainfx.training.machine import placed

__all__ = ["measure_final", "measure_taken"]


def measure_final(
    model: nn.Module, batches: Iterable[Batch], task: Task, execution: Execution, device: torch.device
) -> float:
    """The metric of the final output; leaves the model in eval mode."""
    model.eval()
    sums: Tensor | None = None
    with execution.measuring(device):
        for batch in batches:
            here = placed(batch, device)
            tally = task.tally(_exact(answers(model, here, task)[-1]), here[1])
            sums = tally if sums is None else sums + tally
    return scored(task, sums)


def measure_taken(
    graph_module: GraphModule, batches: Iterable[Batch], task: Task, execution: Execution, device: torch.device
) -> Measurement:
    """The metric with each sample answered by the exit that it takes, and the exit rates; leaves eval mode."""
    exits = exits_of(graph_module)
    if not exits:
        return Measurement(measure_final(graph_module, batches, task, execution, device))
    graph_module.eval()
    sums: Tensor | None = None
    chosen: list[Tensor] = []
    with execution.measuring(device):
        for batch in batches:
            here = placed(batch, device)
            outputs = tuple(map(_exact, answers(graph_module, here, task)))
            chosen.append(choose(outputs, exits))
            tally = task.tally(answer_of(outputs, chosen[-1]), here[1])
            sums = tally if sums is None else sums + tally
    return Measurement(scored(task, sums), shares_of(torch.cat(chosen), exits))


def _exact(answer: Any) -> Any:
    """An answer in float32, also where the network gave it in half precision."""
    return answer.float() if isinstance(answer, Tensor) and answer.is_floating_point() else answer
