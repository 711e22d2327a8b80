"""What training minimises of the outputs of a network: the loss of its task, and distillation from a teacher."""

from typing import Any

import torch
from torch import Tensor

from chainfx.passes import Task

__all__ = ["self_distillation", "soft_sum", "task_sum"]


def task_sum(task: Task, outputs: tuple[Any, ...], targets: Any, label_smoothing: float = 0.0) -> Tensor:
    """The loss of the task, summed over all outputs of the network; shape ().

    Every output has weight 1 (Teerapittayanon et al. 2016, eq. 2, with equal weights).
    """
    options = {"label_smoothing": label_smoothing} if label_smoothing and task.smooths else {}
    return torch.stack([task.loss(output, targets, **options) for output in outputs]).sum()


def soft_sum(
    task: Task, outputs: tuple[Any, ...], taught: tuple[Any, ...], temperature: float, *, exits: bool
) -> Tensor:
    """The soft loss of the task between the final outputs, or with ``exits`` summed over all outputs; shape ().

    Exit i learns from exit i of the teacher, and from the final output of one that has another number of exits.
    """
    assert task.soft is not None
    pairs = zip(outputs, taught if len(taught) == len(outputs) else (taught[-1],) * len(outputs), strict=True)
    losses = [task.soft(own, other, temperature) for own, other in list(pairs)[0 if exits else -1 :]]
    return torch.stack(losses).sum()


def self_distillation(task: Task, outputs: tuple[Any, ...], temperature: float) -> Tensor:
    """The soft loss of every exit against the final output of the same network, which gets no gradient from it.

    Zhang et al. 2019, "Be your own teacher", eq. 2; shape (), and 0 for a network without exits.
    """
    assert task.soft is not None
    *exits, final = outputs
    losses = [task.soft(output, final.detach(), temperature) for output in exits]
    return torch.stack(losses).sum() if losses else final.new_zeros(())
