"""How long tuning a stage will take: by the record of the same stage, else by a training step that is timed."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from chainfx.ir.graph import called, evaluating, recording
from chainfx.passes import TuneRequest
from chainfx.scheduler import Costs, StageRecord

__all__ = ["record_of", "seconds_of_sample"]

_TIMES = 2  # after one that warms up


def record_of(records: Sequence[StageRecord], label: str, costs: Costs) -> StageRecord | None:
    """The latest record of a tuned stage with that label that cost as much; ``None`` if there is none."""

    def fits(record: StageRecord) -> bool:
        after = record.after
        return (
            record.tuned and record.label == label and (after.macs, after.parameters) == (costs.macs, costs.parameters)
        )

    return next((record for record in reversed(records) if fits(record)), None)


def seconds_of_sample(graph_module: GraphModule, inputs: tuple[Tensor, ...], request: TuneRequest) -> float:
    """What one sample of a training step takes here: the forward pass, the backward pass, and the teacher's answer.

    ``inputs`` are a batch, and the time is the shorter of two. No parameter changes, and no gradient is left.
    """
    wanted = {
        name: parameter.requires_grad and (request.parameters is None or name in request.parameters)
        for name, parameter in graph_module.named_parameters()
    }
    trained = [parameter for name, parameter in graph_module.named_parameters() if wanted[name]]
    times = []
    with recording(), evaluating(graph_module):
        for _ in range(_TIMES + 1):
            start = time.perf_counter()
            answers = [each for each in tree_leaves(called(graph_module, *inputs)) if isinstance(each, Tensor)]
            loss = sum(each.float().sum() for each in answers)
            if isinstance(loss, Tensor) and loss.requires_grad and trained:
                torch.autograd.grad(loss, trained, allow_unused=True)
            if request.teacher is not None:
                with torch.no_grad():
                    called(request.teacher, *inputs)
            times.append(time.perf_counter() - start)
    return min(times[1:]) / max(len(inputs[0]), 1)
