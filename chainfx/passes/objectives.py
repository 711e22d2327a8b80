"""What a pass asks of a trainer: what is minimised, for how long and how fast, and by which parameters."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.fx import GraphModule

from chainfx.errors import InputError
from chainfx.ir.graph import edit

__all__ = ["Objective", "Penalty", "Pull", "Schedule", "TuneRequest", "Tunings"]

EVERY = "*"
"""The key of options for every pass of a chain."""

_TEACHERS = ("original", "before")


class Penalty(abc.ABC):
    """A term that is added to the loss and computed from the network alone, such as one that favours small codes.

    A concrete penalty is a frozen dataclass; its ``repr`` says all that decides its values, because finished stages are
    found again by it. :meth:`term` is called once for each tuning.

    >>> import torch
    >>> @dataclass(frozen=True)
    ... class SmallWeights(Penalty):
    ...     strength: float
    ...
    ...     def term(self, graph_module):
    ...         return lambda: self.strength * sum(each.square().sum() for each in graph_module.parameters())
    >>> float(SmallWeights(0.5).term(torch.nn.Linear(1, 1, bias=False).requires_grad_(False))()) >= 0
    True
    """

    @abc.abstractmethod
    def term(self, graph_module: GraphModule) -> Callable[[], Tensor]:
        """A function that gives the penalty, of shape (), for the parameters that the graph has when it is called.

        ``graph_module`` is on the device that it is trained on. A function that is a :class:`torch.nn.Module` has its
        own parameters trained with those of the network, without weight decay; they are dropped afterwards. It must
        not hold the network as a submodule.
        """


@dataclass(frozen=True, eq=False)
class Pull(Penalty):
    """What draws weights to given values: half the squared distance, times ``strength``.

    ``targets``: by the path of a weight the value that it is drawn to, and which elements are; they follow from the
    options of the pass and the network that it works on, by which the stage is known.
    """

    targets: Mapping[str, tuple[Tensor, Tensor]] = field(repr=False)
    strength: float

    def term(self, graph_module: GraphModule) -> Callable[[], Tensor]:
        """The penalty of a network whose weights are at these paths."""
        drawn = [
            (weight, target.to(weight.device), kept.to(weight.device))
            for path, (target, kept) in self.targets.items()
            for weight in (edit.get_tensor(graph_module, path),)
        ]

        def penalty() -> Tensor:
            errors = [((weight - target) * kept).square().sum() for weight, target, kept in drawn]
            return self.strength / 2 * torch.stack(errors).sum()

        return penalty


def _check(value: Any, holds: bool, option: str, allowed: str) -> None:
    if not holds:
        raise InputError(f"tuning: {option}={value!r} is out of range; use {allowed}.")


def _is_number(value: Any, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= least


def _is_count(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a tuning minimises: a sum of terms, each with its weight, of which those with weight 0 are left out.

    ``loss``: ``"task"`` is the loss of the task, summed over all outputs of a network with exits. ``"kd"`` is
    ``hard_weight`` times that plus ``soft_weight`` times Hinton's distillation from the teacher at ``temperature``
    (Hinton et al. 2015). ``"recover"``, the default, is ``"kd"`` with the original network as the teacher; where there
    is no teacher, or the task has no soft loss, it is ``"task"``.

    ``distil_exits``: every exit learns from the same exit of the teacher, or from its final output if it has another
    number of exits; ``"recover"`` does it always. ``exit_weight``: every exit also learns from the final output of the
    network itself (self-distillation, Zhang et al. 2019).

    ``contrast_weight``: contrastive distillation (CRD, Tian et al. 2020) of what the last layer reads, against
    ``negatives`` samples of a memory bank; it needs data in memory. ``hint_weight``: mean squares between feature maps
    of the teacher and of the network behind a learnt 1x1 convolution (FitNets, Romero et al. 2015).
    ``attention_weight``: between their attention maps (Zagoruyko, Komodakis 2017). ``layers`` names the nodes whose
    values are compared, the same in both networks or as ``"own=teacher"``; ``None`` takes three places, spread evenly.

    ``label_smoothing``: of the task loss, ``None`` for the trainer's. ``mixup``: the parameter alpha of mixup (Zhang et
    al. 2018), 0 for none. ``cutout``: the side, in pixels, of a square of zeros in every image (DeVries, Taylor 2017).
    ``sparsity``: the strength of a group lasso on the output channels of the layers, for pruning in rounds.
    ``penalties``: other terms, see :class:`Penalty`.
    """

    loss: Literal["recover", "task", "kd"] = "recover"
    temperature: float = 4.0
    hard_weight: float = 0.1
    soft_weight: float = 0.9
    distil_exits: bool = False
    exit_weight: float = 0.0
    contrast_weight: float = 0.0
    negatives: int = 4096
    hint_weight: float = 0.0
    attention_weight: float = 0.0
    layers: tuple[str, ...] | None = None
    label_smoothing: float | None = None
    mixup: float = 0.0
    cutout: int = 0
    sparsity: float = 0.0
    penalties: tuple[Penalty, ...] = ()

    def __post_init__(self) -> None:
        _check(self.loss, self.loss in ("recover", "task", "kd"), "loss", "'recover', 'task' or 'kd'")
        _check(self.temperature, _is_number(self.temperature, 1e-6), "temperature", "a number above 0")
        for name in ("hard", "soft", "exit", "contrast", "hint", "attention"):
            weight = getattr(self, f"{name}_weight")
            _check(weight, _is_number(weight, 0), f"{name}_weight", "a number from 0")
        for name in ("mixup", "sparsity"):
            _check(getattr(self, name), _is_number(getattr(self, name), 0), name, "a number from 0")
        _check(self.negatives, _is_count(self.negatives, 1), "negatives", "a whole number from 1")
        _check(self.cutout, _is_count(self.cutout, 0), "cutout", "a number of pixels from 0")
        smooths = self.label_smoothing is None or (_is_number(self.label_smoothing, 0) and self.label_smoothing < 1)
        _check(self.label_smoothing, smooths, "label_smoothing", "None, or 0 or more and below 1")
        known = isinstance(self.penalties, tuple) and all(isinstance(each, Penalty) for each in self.penalties)
        _check(self.penalties, known, "penalties", "a tuple of chainfx.passes.Penalty")

    @property
    def learns_from_teacher(self) -> bool:
        """Whether some term compares the network with a teacher."""
        return self.loss != "task" or max(self.contrast_weight, self.hint_weight, self.attention_weight) > 0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast a tuning goes.

    ``epochs``: ``None`` for the trainer's; a tuple has a number for each round of a pass with rounds, of which the last
    serves the rounds after it. ``learning_rate``: ``None`` for the trainer's, at its fine-tuning scale unless the
    parameters start ``from_scratch``. ``restarts``: how often the cosine of the rate starts anew (Loshchilov, Hutter
    2017), in equal parts. ``weight_decay``: ``None`` for the trainer's; ``decay="weights"`` spares what is no weight of
    two or more dimensions (norms, biases, clips of quantizers), ``"all"`` nothing. ``ema``: the share, below 1, of the
    running average of the parameters that each step keeps; that average is then what is measured and handed on.
    ``patience``: stop after so many epochs in a row that are no better than the best one.
    """

    epochs: int | tuple[int, ...] | None = None
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float | None = None
    weight_decay: float | None = None
    decay: Literal["weights", "all"] = "weights"
    from_scratch: bool = False
    restarts: int = 0
    ema: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        counts = self.epochs if isinstance(self.epochs, tuple) else (1 if self.epochs is None else self.epochs,)
        trains = bool(counts) and all(_is_count(each, 1) for each in counts)
        _check(self.epochs, trains, "epochs", "None, a whole number from 1 or a tuple of them, since 0 trains nothing")
        _check(self.optimizer, self.optimizer in ("sgd", "adam"), "optimizer", "'sgd' or 'adam'")
        rate = self.learning_rate
        _check(rate, rate is None or (_is_number(rate, 0) and rate > 0), "learning_rate", "None or a number above 0")
        decay = self.weight_decay
        _check(decay, decay is None or _is_number(decay, 0), "weight_decay", "None or a number from 0")
        _check(self.decay, self.decay in ("weights", "all"), "decay", "'weights' or 'all'")
        _check(self.restarts, _is_count(self.restarts, 0), "restarts", "a whole number from 0")
        _check(self.ema, self.ema is None or (_is_number(self.ema, 0) and self.ema < 1), "ema", "None, or 0 to below 1")
        _check(self.patience, self.patience is None or _is_count(self.patience, 1), "patience", "None or 1 or more")

    def epochs_of(self, round_: int) -> int | None:
        """The epochs of a round, from 0; ``None`` for the trainer's."""
        return self.epochs[min(round_, len(self.epochs) - 1)] if isinstance(self.epochs, tuple) else self.epochs


@dataclass(frozen=True)
class TuneRequest(Schedule, Objective):
    """What a pass asks of the trainer: an objective, a schedule, and what to train. The graph must come back unchanged,
    with other parameter values.

    ``parameters``: names (as in ``named_parameters``) to train, ``None`` for all; what is not named is frozen, and
    modules without a trainable parameter stay in eval mode, so that frozen BatchNorm statistics do not move.
    ``teacher``: the network to learn from; where a pass names none, the runner gives the original one.
    """

    parameters: tuple[str, ...] | None = None
    _: KW_ONLY
    teacher: GraphModule | None = None

    def __post_init__(self) -> None:
        Objective.__post_init__(self)
        Schedule.__post_init__(self)

    def plain(self) -> dict[str, Any]:
        """What is asked beyond the defaults, as JSON; of a teacher that it is there, of penalties their text."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "teacher"}
        changed = {name: value for name, value in found.items() if value != _DEFAULTS[name]}
        return {**_plain(changed), **({"teacher": True} if self.teacher is not None else {})}


_DEFAULTS = {f.name: f.default for f in dataclasses.fields(TuneRequest)}
_OPTIONS = frozenset(f.name for base in (Objective, Schedule) for f in dataclasses.fields(base)) | {"teacher"}


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON, penalties as their text."""

    def one(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [one(item) for item in value]
        return repr(value) if isinstance(value, Penalty) else value

    return {name: one(value) for name, value in options.items()}


@dataclass(frozen=True)
class Tunings:
    """What a user wants other than the passes ask: options of :class:`Objective` and :class:`Schedule` by pass.

    The keys are names of passes, or ``"*"`` for every pass; what stands under a name goes before what stands under
    ``"*"``. One option more is ``teacher``: ``"original"`` for the original network, ``"before"`` for the one that
    entered the pass.

    >>> Tunings.of({"*": {"loss": "task"}, "quantize": {"epochs": 3}}, ["quantize"]).options("quantize")
    {'loss': 'task', 'epochs': 3}
    """

    by_pass: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, tuning: Any, passes: Sequence[str]) -> Self:
        """The options that were given, checked for a chain of passes by name; raises :class:`InputError`."""
        if not isinstance(tuning, Mapping) or not all(isinstance(each, Mapping) for each in tuning.values()):
            raise InputError(
                f"tuning is {tuning!r}; give a mapping from names of passes to options, such as "
                "{'quantize': {'loss': 'task', 'epochs': 5}}."
            )
        for name, options in tuning.items():
            if name != EVERY and name not in passes:
                raise InputError(
                    f"tuning names {name!r}, which is no pass of the chain; it has {', '.join(dict.fromkeys(passes))}."
                )
            _check_options(name, options)
        return cls({name: {key: _as_tuple(value) for key, value in given.items()} for name, given in tuning.items()})

    def options(self, name: str) -> dict[str, Any]:
        """The options for a pass."""
        return {**self.by_pass.get(EVERY, {}), **self.by_pass.get(name, {})}

    def plain(self, name: str) -> dict[str, Any]:
        """The options for a pass as JSON, as they stand in the key of its stage."""
        return _plain(self.options(name))

    def served(
        self, request: TuneRequest, name: str, round_: int, original: GraphModule, before: GraphModule | None
    ) -> TuneRequest:
        """The request of a pass with the options of the user, the epochs of its round, and its teacher."""
        options = self.options(name)
        teacher = request.teacher
        named = options.pop("teacher", None)
        if named is not None:
            teacher = before if named == "before" else original
        found = dataclasses.replace(request, **options)
        if teacher is None and found.learns_from_teacher:
            teacher = original
        return dataclasses.replace(found, teacher=teacher, epochs=found.epochs_of(round_))


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    for key in options:
        if key not in _OPTIONS:
            close = get_close_matches(str(key), _OPTIONS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(sorted(_OPTIONS))}."
            raise InputError(f"tuning of {name!r}: there is no option {key!r}; {hint}")
    teacher = options.get("teacher", "original")
    _check(teacher, teacher in _TEACHERS, "teacher", "'original' or 'before'")
    TuneRequest(**{key: _as_tuple(value) for key, value in options.items() if key != "teacher"})
