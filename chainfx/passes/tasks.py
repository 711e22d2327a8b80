"""What a network is for: what it is trained on, what is measured of it, and how sure an answer is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chainfx.errors import InputError
from chainfx.ir.graph import ops

__all__ = ["Metric", "Task", "classification"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What a trainer measures: the name of the number, which direction is better, and how it is written.

    ``form`` is a format specification of Python. The default is accuracy, a share that is shown in percent.

    >>> Metric().text(0.875), Metric("perplexity", higher_is_better=False, form=".1f").text(12.34)
    ('87.50%', '12.3')
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    form: str = ".2%"

    def text(self, value: float) -> str:
        """The number as reports show it."""
        return format(value, self.form)

    def loss(self, before: float, after: float) -> float:
        """By how much ``after`` is worse than ``before``; below 0 if it is better."""
        return before - after if self.higher_is_better else after - before


@dataclass(frozen=True)
class Task:
    """What a network is for. :mod:`chainfx.training` has the usual tasks as functions; this class makes one's own.

    ``name``: finished stages are found again by it, so tasks that differ have names that differ. ``loss(answer,
    targets)``: what is minimised, the mean over a batch, of shape (); ``answer`` is what the network returns, or what
    one of its exits does. ``metric``: the name, direction and form of what is measured. That is streamed: ``tally``
    gives sums over a batch, a tensor of shape (k,), which are added over all batches, and ``score`` makes the number of
    the total. For accuracy the sums are the right answers and all of them, and the number is their quotient.

    ``soft(answer, teacher's answer, temperature)``: the loss of distillation, of shape (); without it a network of this
    task recovers on its own loss. ``criteria``: the names of the confidences (of
    :func:`chainfx.ir.graph.ops.confidence`) by which a sample may leave at an exit, the usual one first; none if an
    answer says not how sure it is. ``misfit(answer, targets)``: ``None`` if an answer has the form that the task needs,
    else that form and what to do, such as ``("one number a sample", "use one output")``; the answer is ``None`` where
    the network returns several things. ``check(targets, samples)`` raises :class:`~chainfx.errors.DataError` for
    targets that the task cannot have. ``smooths``: whether ``loss`` takes ``label_smoothing``.

    >>> SIZE = torch.tensor(4.0)
    >>> rms = Task(
    ...     "rms", F.mse_loss,
    ...     tally=lambda answer, targets: torch.stack([F.mse_loss(answer, targets, reduction="sum"), SIZE]),
    ...     score=lambda sums: float((sums[0] / sums[1]).sqrt()),
    ...     metric=Metric("error", higher_is_better=False, form=".3f"),
    ... )
    >>> rms.metric.text(rms.score(rms.tally(torch.zeros(4), torch.full((4,), 2.0))))
    '2.000'
    """

    name: str
    loss: Callable[..., Tensor]
    tally: Callable[[Any, Any], Tensor]
    score: Callable[[Tensor], float]
    metric: Metric
    soft: Callable[[Any, Any, float], Tensor] | None = None
    criteria: tuple[str, ...] = ()
    misfit: Callable[[Any, Any], tuple[str, str] | None] | None = None
    check: Callable[[Any, int], None] | None = None
    smooths: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.metric, Metric):
            raise InputError(
                f"task {self.name!r}: metric is of type {type(self.metric).__name__}; give a chainfx.passes.Metric, "
                "which names what score makes of the sums of tally."
            )
        unknown = [name for name in self.criteria if name not in ops.CRITERIA]
        if unknown:
            raise InputError(
                f"task {self.name!r}: there is no confidence {unknown[0]!r}; use some of {', '.join(ops.CRITERIA)}."
            )


def classification() -> Task:
    """One class a sample: logits (N, classes), targets (N,); cross-entropy, accuracy, and Hinton's soft loss."""
    return _CLASSIFICATION


def soft_labels(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T**2 / N * sum KL(softmax(teacher / T) || softmax(student / T))`` (Hinton et al. 2015, sec. 2); shape ().

    Both are logits (N, classes); the factor ``T**2`` keeps the size of the gradient independent of the temperature.
    """
    student_log = F.log_softmax(student.float() / temperature, dim=1)
    teacher_log = F.log_softmax(teacher.float() / temperature, dim=1)
    return F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True) * temperature**2


def _cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)


def _right(logits: Tensor, targets: Tensor) -> Tensor:
    right = (logits.argmax(dim=1) == targets).sum()
    return torch.stack([right, torch.full_like(right, len(targets))]).double()


def _share(sums: Tensor) -> float:
    right, count = sums.tolist()
    return float(right / count)


_CLASSIFICATION = Task(
    "classification",
    loss=_cross_entropy,
    tally=_right,
    score=_share,
    metric=Metric(),
    soft=soft_labels,
    criteria=("max-softmax", "entropy", "margin"),
    smooths=True,
)
