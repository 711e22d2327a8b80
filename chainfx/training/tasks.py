"""The usual tasks: what their loss is, what is measured of them, and how sure an answer is.

Each function makes a :class:`~chainfx.passes.Task`; give it to the data: ``from_loaders(..., task=regression())``.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chainfx.errors import DataError
from chainfx.passes import Metric, Task, classification, soft_labels

__all__ = [
    "binary_classification",
    "classes",
    "language_modelling",
    "multilabel_classification",
    "regression",
    "segmentation",
    "token_classification",
]

_OWN = "give a trainer of your own"
_IGNORED = -100  # the index that cross-entropy leaves out, as torch and transformers have it
_YES_NO = ("max-sigmoid",)
_BY_TOKEN = ("token-max-softmax", "token-entropy", "token-margin")
_BY_PIXEL = ("pixel-max-softmax", "pixel-entropy", "pixel-margin")

Misfit = tuple[str, str] | None


def classes(number: int) -> Task:
    """Classification into a known number of classes: logits (N, classes), targets (N,) from 0.

    >>> task = classes(3)
    >>> task.score(task.tally(torch.eye(3), torch.tensor([0, 1, 1])))
    0.6666666666666666
    """
    usual = classification()
    return Task(
        usual.name,
        usual.loss,
        usual.tally,
        usual.score,
        usual.metric,
        soft=usual.soft,
        criteria=usual.criteria,
        misfit=partial(_no_logits, number),
        check=partial(_check_labels, number),
        smooths=True,
    )


def binary_classification() -> Task:
    """Yes or no by one logit: answers (N,) or (N, 1), targets (N,) of 0 and 1; measured is accuracy.

    >>> task = binary_classification()
    >>> task.score(task.tally(torch.tensor([[2.0], [-1.0]]), torch.tensor([1, 1])))
    0.5
    """
    return Task(
        "binary classification",
        loss=_binary_loss,
        tally=lambda answer, targets: _counted((_flat(answer) > 0) == (_flat(targets) > 0.5)),
        score=_quotient,
        metric=Metric(),
        soft=_soft_binary,
        criteria=_YES_NO,
        misfit=_per_sample("one logit a sample, shape ({n},) or ({n}, 1)", 1),
    )


def multilabel_classification(labels: int) -> Task:
    """Any number of labels a sample: logits (N, labels), targets (N, labels) of 0 and 1.

    Measured is F1 over all samples and labels (micro): twice the hits over all that are predicted and all that are so.
    """
    return Task(
        f"multilabel classification, {labels} labels",
        loss=lambda answer, targets: F.binary_cross_entropy_with_logits(answer.float(), targets.float()),
        tally=lambda answer, targets: _overlap(answer > 0, targets > 0.5),
        score=lambda sums: float(2 * sums[0] / sums[1]) if sums[1] else 1.0,
        metric=Metric("F1"),
        soft=_soft_binary,
        criteria=_YES_NO,
        misfit=_per_sample(f"logits of shape ({{n}}, {labels}), a column for each label", labels),
    )


def regression(outputs: int = 1) -> Task:
    """Numbers: answers and targets (N, outputs), or (N,) for one; mean squared error, measured is its square root.

    Distillation is the mean squared difference to the teacher. An answer says not how sure it is, so there are no
    early exits.
    """
    return Task(
        f"regression, {outputs} outputs",
        loss=lambda answer, targets: F.mse_loss(_flat(answer), _flat(targets)),
        tally=lambda answer, targets: _summed((_flat(answer) - _flat(targets)).square()),
        score=lambda sums: math.sqrt(_quotient(sums)),
        metric=Metric("root mean squared error", higher_is_better=False, form=".4g"),
        soft=lambda answer, teacher, temperature: F.mse_loss(_flat(answer), _flat(teacher)),
        misfit=_per_sample(f"{outputs} numbers a sample", outputs),
    )


def segmentation(number: int, ignored: int = 255) -> Task:
    """A class for each pixel: logits (N, classes, H, W), targets (N, H, W); pixels of the class ``ignored`` do not
    count.

    Measured is the mean intersection over union of the classes that occur in targets or answers, from one matrix of
    counts over all images (Everingham et al. 2010).
    """
    return Task(
        f"segmentation, {number} classes, {ignored} ignored",
        loss=lambda answer, targets: F.cross_entropy(answer.float(), targets.long(), ignore_index=ignored),
        tally=partial(_confusion, number, ignored),
        score=partial(_mean_iou, number),
        metric=Metric("mIoU"),
        criteria=_BY_PIXEL,
        soft=lambda answer, teacher, temperature: soft_labels(_rows(answer), _rows(teacher), temperature),
        misfit=_shaped(number, 4, 1, f"logits of shape (N, {number}, height, width)"),
    )


def token_classification(number: int) -> Task:
    """A class for each token: logits (N, length, classes), targets (N, length), where -100 does not count.

    Measured is the share of tokens that are right.
    """
    return Task(
        f"token classification, {number} classes",
        loss=_token_loss,
        tally=_right_tokens,
        score=_quotient,
        metric=Metric("token accuracy"),
        criteria=_BY_TOKEN,
        soft=lambda answer, teacher, temperature: soft_labels(_tokens(answer), _tokens(teacher), temperature),
        misfit=_shaped(number, 3, 2, f"logits of shape (N, length, {number})"),
    )


def language_modelling(vocabulary: int, *, shifted: bool = False) -> Task:
    """The next token: logits (N, length, vocabulary), targets (N, length), where -100 does not count.

    Without ``shifted`` the answer at a place is compared with the target at the next one, as the targets are the inputs
    themselves; with it the data have shifted them already. The loss is the mean over tokens; measured is perplexity,
    ``exp`` of the loss of a token.
    """

    def aligned(answer: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return (answer, targets) if shifted else (answer[:, :-1], targets[:, 1:])

    def tally(answer: Tensor, targets: Tensor) -> Tensor:
        logits, wanted = aligned(answer, targets)
        total = F.cross_entropy(_tokens(logits).double(), wanted.flatten(), ignore_index=_IGNORED, reduction="sum")
        return torch.stack([total, (wanted != _IGNORED).sum().double()])

    return Task(
        f"language modelling, {vocabulary} tokens{', shifted' if shifted else ''}",
        loss=lambda answer, targets: _token_loss(*aligned(answer, targets)),
        tally=tally,
        score=lambda sums: math.exp(min(_quotient(sums), 700.0)),
        metric=Metric("perplexity", higher_is_better=False, form=".3f"),
        criteria=_BY_TOKEN,
        soft=lambda answer, teacher, temperature: soft_labels(_tokens(answer), _tokens(teacher), temperature),
        misfit=_shaped(vocabulary, 3, 2, f"logits of shape (N, length, {vocabulary})"),
    )


def _flat(tensor: Tensor) -> Tensor:
    """Numbers (N, k) in float32; those of shape (N,) are one a sample."""
    return tensor.float().reshape(len(tensor), -1)


def _rows(answer: Tensor) -> Tensor:
    """Logits (N, classes, ...) as rows (N * places, classes)."""
    return answer.movedim(1, -1).flatten(0, -2)


def _tokens(answer: Tensor) -> Tensor:
    """Logits (N, length, classes) as rows (N * length, classes)."""
    return answer.flatten(0, 1)


def _summed(values: Tensor) -> Tensor:
    return torch.stack([values.double().sum(), values.new_tensor(values.numel(), dtype=torch.float64)])


def _counted(right: Tensor) -> Tensor:
    return _summed(right)


def _quotient(sums: Tensor) -> float:
    total, count = sums.tolist()
    return float(total / count) if count else math.nan


def _binary_loss(answer: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(_flat(answer), _flat(targets))


def _soft_binary(answer: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T**2`` times the mean cross-entropy between the teacher's and the own probabilities of yes, at temperature T,
    less the entropy of the teacher's, so that it is 0 where both agree.
    """
    own, taught = _flat(answer) / temperature, torch.sigmoid(_flat(teacher) / temperature)
    entropy = F.binary_cross_entropy(taught, taught)
    return (F.binary_cross_entropy_with_logits(own, taught) - entropy) * temperature**2


def _overlap(found: Tensor, wanted: Tensor) -> Tensor:
    return torch.stack([(found & wanted).sum(), found.sum() + wanted.sum()]).double()


def _confusion(number: int, ignored: int, answer: Tensor, targets: Tensor) -> Tensor:
    """How many pixels of each class (rows) got each class (columns), as a vector."""
    found, wanted = answer.argmax(dim=1).flatten(), targets.flatten().long()
    pairs = torch.where(wanted == ignored, number**2, wanted * number + found)
    return torch.bincount(pairs, minlength=number**2 + 1)[: number**2].double()


def _mean_iou(number: int, sums: Tensor) -> float:
    matrix = sums.view(number, number)
    both, either = matrix.diagonal(), matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    occurs = either > 0
    return float((both[occurs] / either[occurs]).mean()) if bool(occurs.any()) else math.nan


def _token_loss(answer: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(_tokens(answer).float(), targets.flatten(), ignore_index=_IGNORED)


def _right_tokens(answer: Tensor, targets: Tensor) -> Tensor:
    counts = targets != _IGNORED
    return torch.stack([((answer.argmax(dim=-1) == targets) & counts).sum(), counts.sum()]).double()


def _per_sample(needs: str, numbers: int) -> Callable[[Any, Any], Misfit]:
    def misfit(answer: Any, targets: Any) -> Misfit:
        fits = isinstance(answer, Tensor) and len(answer) == len(targets) and answer.numel() == numbers * len(targets)
        return None if fits else (needs.format(n=len(targets)), f"change the last layer, or {_OWN}")

    return misfit


def _shaped(number: int, dims: int, axis: int, needs: str) -> Callable[[Any, Any], Misfit]:
    def misfit(answer: Any, targets: Any) -> Misfit:
        fits = isinstance(answer, Tensor) and answer.dim() == dims and answer.shape[axis] == number
        places = tuple(answer.shape[:axis]) + tuple(answer.shape[axis + 1 :]) if fits else ()
        if fits and places == tuple(targets.shape):
            return None
        return (
            f"{needs} for targets of shape {tuple(targets.shape)}",
            f"change the last layer or the targets, or {_OWN}",
        )

    return misfit


def _no_logits(number: int, answer: Any, targets: Any) -> Misfit:
    """What is wrong with an answer that is no logits (N, classes)."""
    wanted = (len(targets), number)
    if isinstance(answer, Tensor) and answer.shape == wanted:
        return None
    needs = f"logits of shape {wanted}, a column for each of the {number} classes of its data"
    if not isinstance(answer, Tensor):
        return needs, f"wrap the network in a module that returns the logits alone, or {_OWN}"
    if number == 2 and answer.numel() == len(targets):
        return needs, "give the last layer two outputs, or the data task=binary_classification() for a single logit"
    if answer.dim() == 2:
        return needs, f"give the last layer {number} outputs, or correct num_classes of the data"
    return needs, "give the data another task (chainfx.training) for anything but one class a sample"


def _check_labels(number: int, targets: Tensor, samples: int) -> None:
    """Raise :class:`~chainfx.errors.DataError` unless ``targets`` are one class for each of ``samples`` samples."""
    if targets.shape != (samples,):
        raise DataError(
            f"the labels of a batch of {samples} samples have shape {tuple(targets.shape)}; "
            f"give the index of one class for each sample, shape ({samples},)."
        )
    wrong = targets[(targets < 0) | (targets >= number)]
    if len(wrong):
        raise DataError(
            f"a label is {int(wrong[0])}, but the data have {number} classes, numbered from 0 to "
            f"{number - 1}; correct the labels or num_classes."
        )
