"""What training minimises of the outputs of a network: the loss of its task, and distillation from a teacher."""

from typing import Any

import torch
from torch import Tensor

from chainfx.errors import TuningError
from chainfx.passes import Task, classification, soft_labels

__all__ = ["distillation_loss", "logits_of", "self_distillation", "soft_loss", "soft_sum", "task_loss", "task_sum"]

soft_loss = soft_labels


def logits_of(output: object) -> tuple[Tensor, ...]:
    """The logits (N, classes) a classifier returned, the final ones last; a tuple comes from a network with exits.

    Raises :class:`~chainfx.errors.TuningError` on any other output.
    """
    outputs = tuple(output) if isinstance(output, tuple | list) else (output,)
    if outputs and all(isinstance(item, Tensor) and item.dim() == 2 for item in outputs):
        return outputs
    shown = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise TuningError(
        f"the network returned {shown}, not logits of shape (N, classes) or a tuple of them; "
        f"the default trainer trains classifiers, give your own trainer for anything else."
    )


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


def task_loss(output: object, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in float32, mean over the batch, summed over all outputs of a classifier; shape ().

    ``targets``: class indices (N,).
    """
    return task_sum(classification(), logits_of(output), targets, label_smoothing)


def distillation_loss(
    output: object,
    teacher_output: object,
    targets: Tensor,
    *,
    temperature: float = 4.0,
    hard_weight: float = 0.1,
    soft_weight: float = 0.9,
    exits: bool = False,
    label_smoothing: float = 0.0,
) -> Tensor:
    """``hard_weight * task_loss + soft_weight * soft_loss`` of a classifier, the latter between the final outputs.

    With ``exits`` the latter is summed over all outputs. Shape ().
    The constants are those of Tian et al. 2020 for plain distillation (gamma 0.1, alpha 0.9, T 4).
    """
    hard = task_loss(output, targets, label_smoothing=label_smoothing)
    soft = soft_sum(classification(), logits_of(output), logits_of(teacher_output), temperature, exits=exits)
    return hard_weight * hard + soft_weight * soft
