"""Whether network and data fit together: classes, shapes, labels and finite numbers, in one sentence each."""

from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.errors import DataError, TuningError
from chainfx.ir.graph import called, exits_of, lacks_memory
from chainfx.training.data import Batch

__all__ = ["answers", "check_labels"]

_OWN = "give a trainer of your own"


def answers(model: nn.Module, batch: Batch, num_classes: int) -> Tensor:
    """The final logits (N, classes) of a batch ``(inputs, targets)``.

    A network returns one tensor of logits, and one for each of its exits before it. Raises
    :class:`~chainfx.errors.DataError` when the batch does not fit the network, its labels are out of range or its
    inputs are no numbers, and :class:`~chainfx.errors.TuningError` when the network returns anything else.
    """
    inputs, targets = batch
    check_labels(targets, len(inputs[0]), num_classes)
    if any(bool(tensor.isnan().any()) for tensor in inputs if tensor.is_floating_point()):
        raise DataError(
            "the data to evaluate on have values that are not a number (NaN); mend or remove these samples."
        )
    output = _run(model, inputs)
    outputs = tuple(output) if isinstance(output, tuple | list) else (output,)
    exits = len(exits_of(model)) if isinstance(model, GraphModule) else 0
    wanted = (len(targets), num_classes)
    if len(outputs) != exits + 1 or not all(_is_of(item, wanted) for item in outputs):
        raise TuningError(
            f"the network returns {_shown(output)} for a batch of {len(targets)} samples, but the default trainer "
            f"needs logits of shape {wanted}, a column for each of the {num_classes} classes of its data; "
            f"{_advice(outputs, exits, wanted)}."
        )
    logits: Tensor = outputs[-1]
    if bool(logits.isnan().any()):
        raise TuningError(
            "the network gives logits that are not a number (NaN) on the data to evaluate on; look for NaN in its "
            "parameters and buffers, or lower the trainer's learning_rate if it was trained just now."
        )
    return logits


def check_labels(targets: Tensor, samples: int, num_classes: int) -> None:
    """Raise :class:`~chainfx.errors.DataError` unless ``targets`` are one class for each of ``samples`` samples."""
    if targets.shape != (samples,):
        raise DataError(
            f"the labels of a batch of {samples} samples have shape {tuple(targets.shape)}; "
            f"give the index of one class for each sample, shape ({samples},)."
        )
    wrong = targets[(targets < 0) | (targets >= num_classes)]
    if len(wrong):
        raise DataError(
            f"a label is {int(wrong[0])}, but the data have {num_classes} classes, numbered from 0 to "
            f"{num_classes - 1}; correct the labels or num_classes."
        )


def _run(model: nn.Module, inputs: tuple[Tensor, ...]) -> object:
    try:
        return called(model, *inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if lacks_memory(error):
            raise
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise DataError(
            f"the network does not accept a batch of the data, of shape {shapes}: {reason}; "
            f"give data of the shape and type that the network takes."
        ) from error


def _is_of(item: object, shape: tuple[int, int]) -> bool:
    return isinstance(item, Tensor) and item.shape == shape


def _shown(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {' and '.join(map(_shown, output)) or 'nothing'}"
    return f"a {type(output).__name__}"


def _advice(outputs: tuple[object, ...], exits: int, wanted: tuple[int, int]) -> str:
    samples, classes = wanted
    only = outputs[0] if len(outputs) == 1 and not exits else None
    if not isinstance(only, Tensor):
        return f"wrap the network in a module that returns the logits alone, or {_OWN}"
    if classes == 2 and only.numel() == samples:
        return f"give the last layer two outputs instead of a single logit, or {_OWN}"
    if only.dim() == 2:
        return f"give the last layer {classes} outputs, or correct num_classes of the data"
    return f"{_OWN} for anything but one class a sample"
