"""Whether network, data and task fit together: shapes, labels and finite numbers, in one sentence each."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.errors import DataError, TuningError
from chainfx.ir.graph import called, exits_of, lacks_memory
from chainfx.passes import Task
from chainfx.training.data import Batch

__all__ = ["answers", "outputs_of", "scored"]


def outputs_of(output: object, exits: int, task: Task) -> tuple[Any, ...]:
    """What the exits of a network answered and its final answer, of what it returned.

    A task that says nothing of the form of an answer takes what a network without exits returns as it is.
    """
    if not exits and task.misfit is None:
        return (output,)
    return tuple(output) if isinstance(output, tuple | list) else (output,)


def answers(model: nn.Module, batch: Batch, task: Task) -> tuple[Any, ...]:
    """The answers of all exits and the final one to a batch ``(inputs, targets)``.

    Raises :class:`~chainfx.errors.DataError` when the batch does not fit the network, its targets do not fit the task
    or its inputs are no numbers, and :class:`~chainfx.errors.TuningError` when the network returns anything else than
    the task needs.
    """
    inputs, targets = batch
    if task.check is not None:
        task.check(targets, len(inputs[0]))
    if any(bool(tensor.isnan().any()) for tensor in inputs if tensor.is_floating_point()):
        raise DataError(
            "the data to evaluate on have values that are not a number (NaN); mend or remove these samples."
        )
    output = _run(model, inputs)
    exits = len(exits_of(model)) if isinstance(model, GraphModule) else 0
    found = outputs_of(output, exits, task)
    if task.misfit is not None:
        misfits = [task.misfit(item, targets) for item in found]
        if len(found) != exits + 1 or any(misfits):
            only = found[0] if len(found) == 1 and not exits else None
            needs, advice = task.misfit(only, targets) or ("", "")
            raise TuningError(
                f"the network returns {_shown(output)} for a batch of {len(inputs[0])} samples, but the default "
                f"trainer needs {needs}; {advice}."
            )
    if isinstance(found[-1], Tensor) and bool(found[-1].isnan().any()):
        raise TuningError(
            "the network gives logits that are not a number (NaN) on the data to evaluate on; look for NaN in its "
            "parameters and buffers, or lower the trainer's learning_rate if it was trained just now."
        )
    return found


def scored(task: Task, sums: Tensor | None) -> float:
    """The metric of a task for the sums over all batches, ``None`` where there was no batch."""
    if sums is None:
        raise DataError("the data to evaluate on gave no batch; check the length of its DataLoader.")
    value = task.score(sums)
    if not math.isfinite(value):
        raise TuningError(
            f"the {task.metric.name} of the task {task.name!r} is {value} on the data to evaluate on; "
            "give data on which it has a value, or mend what the task tallies."
        )
    return value


def _run(model: nn.Module, inputs: tuple[Tensor, ...]) -> object:
    try:
        return called(model, *inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if lacks_memory(error):
            raise
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        device = inputs[0].device.type
        half = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
        advice = f", or compute in float32 if it is {half} that it has no kernels for on this device" if half else ""
        raise DataError(
            f"the network does not accept a batch of the data, of shape {shapes}: {reason}; "
            f"give data of the shape and type that the network takes{advice}."
        ) from error


def _shown(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {' and '.join(map(_shown, output)) or 'nothing'}"
    return f"a {type(output).__name__}"
