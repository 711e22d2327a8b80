"""What users give to :func:`chainfx.compile`, checked: one sentence for what is something else."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from chainfx.errors import InputError
from chainfx.passes import Execution, Metric, Trainer, is_number
from chainfx.scheduler import Plan
from chainfx.search import Search

__all__ = ["an_example", "check_options", "check_search", "check_trainer", "checked", "listed"]

_OF_TRAINERS = ("fingerprint", "tune", "evaluate", "calibration", "validation")


def check_options(passes: Any, seed: Any, warn_drop: Any, refuse: Any, execution: Any) -> None:
    """Raise :class:`~chainfx.errors.InputError` for options of ``compile`` that are not what it takes."""
    if type(seed) is not int:
        raise InputError(f"seed={seed!r} is no whole number; give one, such as 0.")
    if not isinstance(passes, Plan | list | tuple) or not (passes.passes if isinstance(passes, Plan) else passes):
        raise InputError(f"passes is {passes!r}; give a list with at least one pass, or a Plan.")
    if warn_drop is not None and not is_number(warn_drop, 0):
        raise InputError(f"warn_drop={warn_drop!r} is out of range; use a number from 0, or None for no warning.")
    if refuse not in (None, "errors"):
        raise InputError(f"refuse={refuse!r} is not known; use 'errors' or None.")
    if execution is not None and not isinstance(execution, Execution):
        raise InputError(
            f"execution is of type {type(execution).__name__}; give a chainfx.passes.Execution, or leave it out."
        )


def check_trainer(trainer: Any, part: str | None) -> None:
    """Raise :class:`InputError` for what has not all that a :class:`~chainfx.passes.Trainer` has."""
    if part is not None:
        raise InputError(
            f"a trainer works on whole networks, not on part={part!r}; compile the module itself, model.{part}, with a "
            f"trainer whose data are its inputs, and put the result in its place."
        )
    missing = [name for name in _OF_TRAINERS if not hasattr(trainer, name)]
    if isinstance(trainer, type) or missing:
        seen = f"the class {trainer.__name__}" if isinstance(trainer, type) else f"a {type(trainer).__name__}"
        lacks = f", which has no {', '.join(missing)}" if missing else ", not an object of it"
        raise InputError(
            f"trainer is {seen}{lacks}; give chainfx.training.Trainer(data) or an object with all that "
            f"chainfx.passes.Trainer lists."
        )
    metric = getattr(trainer, "metric", Metric())
    if not isinstance(metric, Metric):
        raise InputError(
            f"trainer.metric is a {type(metric).__name__}; give a chainfx.passes.Metric, which names what the trainer "
            f"measures, or leave it out for accuracy."
        )


def check_search(search: Any, trainer: Any, part: str | None) -> None:
    """Raise :class:`InputError` for what is no search, and for one that nothing measures."""
    if not isinstance(search, Search):
        raise InputError(f"search is a {type(search).__name__}; give a chainfx.Search, or leave it out.")
    if trainer is None:
        why = f"part={part!r} is compiled without one" if part is not None else "there is none"
        raise InputError(f"a search needs a trainer, which measures its trials, and {why}; give trainer=....")


def listed(calibration: Any) -> list[Any]:
    """The batches of calibration, at least one."""
    if isinstance(calibration, Tensor | Mapping | str) or not isinstance(calibration, Iterable):
        raise InputError(f"calibration is of type {type(calibration).__name__}; give a list of batches of inputs.")
    batches = list(calibration)
    if not batches:
        raise InputError("calibration is empty; give at least one batch of inputs, or leave it out.")
    return batches


def an_example(calibration: Sequence[Any] | None, trainer: Trainer | None, batch_dim: int) -> Any:
    """Inputs to capture a network with, where none are given: the first batch of calibration, or one of the trainer's.

    Of the trainer's batches it is the first sample.
    """
    if calibration is not None:
        return calibration[0]
    batch = None if trainer is None or batch_dim else next(iter(trainer.calibration), None)
    if batch is None:
        why = "there is neither calibration nor a trainer" if trainer is None else "the trainer has no batches of it"
        why = f"batch_dim={batch_dim} and those of a trainer have the batch first" if trainer and batch_dim else why
        raise InputError(f"example_inputs is missing, and {why}; give one batch of inputs as the network takes them.")
    return tuple(tensor[:1] for tensor in batch)


def checked(inputs: Any, name: str) -> tuple[Tensor, ...] | Mapping[str, Tensor]:
    """Inputs as they were given, one tensor as a tuple; raises :class:`InputError` for what is neither."""
    if isinstance(inputs, Mapping):
        return inputs
    found = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    if not found or not all(isinstance(item, Tensor) for item in found):
        kinds = ", ".join(type(item).__name__ for item in found) or "nothing"
        raise InputError(f"{name} must be a tensor or a tuple of tensors, but is {kinds}; give one batch of inputs.")
    return found
