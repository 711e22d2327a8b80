"""What training minimises: the task loss over every output of a network, and Hinton distillation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from chainfx.errors import TuningError

__all__ = ["distillation_loss", "logits_of", "soft_loss", "task_loss"]


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


def task_loss(output: object, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in float32, mean over the batch, summed over all outputs of the network; shape ().

    ``targets``: class indices (N,). Every output has weight 1 (Teerapittayanon et al. 2016, eq. 2, with equal weights).
    """
    losses = [F.cross_entropy(z.float(), targets, label_smoothing=label_smoothing) for z in logits_of(output)]
    return torch.stack(losses).sum()


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T**2 / N * sum KL(softmax(teacher / T) || softmax(student / T))`` (Hinton et al. 2015, sec. 2); shape ().

    Both are logits (N, classes); the factor ``T**2`` keeps the size of the gradient independent of the temperature.
    """
    student_log = F.log_softmax(student.float() / temperature, dim=1)
    teacher_log = F.log_softmax(teacher.float() / temperature, dim=1)
    return F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True) * temperature**2


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
    """``hard_weight * task_loss + soft_weight * soft_loss``, the latter between the final outputs; shape ().

    With ``exits`` the latter is summed over all outputs: exit i learns from exit i of the teacher, and from the final
    output of a teacher that has another number of exits.
    The constants are those of Tian et al. 2020 for plain distillation (gamma 0.1, alpha 0.9, T 4).
    """
    hard = task_loss(output, targets, label_smoothing=label_smoothing)
    own, taught = logits_of(output), logits_of(teacher_output)
    pairs = zip(own, taught if len(taught) == len(own) else (taught[-1],) * len(own), strict=True)
    soft = torch.stack([soft_loss(*pair, temperature) for pair in pairs][0 if exits else -1 :]).sum()
    return hard_weight * hard + soft_weight * soft
