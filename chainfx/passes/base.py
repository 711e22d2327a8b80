"""The pass contract: what a pass declares, what it is given, what it returns."""

import abc
import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

from torch import Generator, Tensor, nn
from torch.fx import GraphModule

from chainfx.errors import PassError
from chainfx.ir.graph import FactName, Skipped, derived_generator, lacks_memory
from chainfx.passes.execution import Answers, Execution, Measurement
from chainfx.passes.objectives import TuneRequest
from chainfx.passes.tasks import Metric, Task, classification

__all__ = [
    "NEEDS",
    "Answers",
    "Domain",
    "Epoch",
    "Execution",
    "Granularity",
    "Kind",
    "Measurement",
    "Metric",
    "Pass",
    "PassContext",
    "PassInfo",
    "PassResult",
    "Skipped",
    "Task",
    "Trainer",
    "TuneRequest",
    "accepted",
    "all_found",
    "is_number",
    "metric_of",
    "processes_of",
    "task_of",
    "trainer_on",
]

_T = TypeVar("_T")

NEEDS = frozenset({"calibration", "training", "evaluation"})
"""What a pass may ask of a run in ``PassInfo.needs``: calibration batches, a trainer, or measured accuracy."""


Domain = Literal["weights", "network"]
"""What a pass works on, see :class:`PassInfo`."""


class _Property(enum.IntEnum):
    """A property that passes are sorted by: the smaller value goes first."""

    @property
    def word(self) -> str:
        """The value as lists and reasons show it, e.g. ``sub-neuron``."""
        return self.name.lower().replace("_", "-")


class Kind(_Property):
    """Whether the compressed network does the same work for every input (static) or not (dynamic)."""

    STATIC = 0
    DYNAMIC = 1


class Granularity(_Property):
    """The size of what a pass decides about, from large to small."""

    ARCHITECTURE = 0
    LAYER = 1
    NEURON = 2
    SUB_NEURON = 3
    BIT = 4


@dataclass(frozen=True, slots=True)
class PassInfo:
    """What the scheduler knows of a pass.

    ``name`` is kebab-case and also the entry-point name. ``needs`` is a subset of :data:`NEEDS`. ``requires``,
    ``establishes`` and ``invalidates`` are names of facts that the graph states (:data:`chainfx.ir.graph.FACTS`): a
    pass that establishes a fact goes before one that requires it, one that requires it before one that invalidates it,
    and one that invalidates a fact which no pass requires before one that establishes it. The runner refuses a pass
    that changes a fact which it neither establishes nor invalidates. ``repeatable`` says whether the same pass may
    stand twice in a chain. Raise ``revision`` when the same options give another result than before: finished stages of
    the former revision are then computed again. ``headline`` names the first options of the class that every label
    shows, by value alone and also where they are the defaults, as in ``quantize(8, 8)``.

    ``domain`` says what the pass works on, and so what it owes an answer about. ``"weights"``: after the pass every
    parameter of two or more dimensions is changed, or named in ``skipped`` with a reason. ``"network"``: the pass adds,
    takes out or replaces parts of the network as a whole, and owes no answer for each parameter.

    ``family`` is the kind of method, such as ``"quantization"`` or ``"pruning"``: evidence about a family holds for
    every pass of it. ``exact``: the network computes the same afterwards, up to rounding; every other pass is *lossy*.
    ``tunes``: the pass asks for tuning where a trainer serves; a post-training method does not.
    """

    name: str
    kind: Kind
    granularity: Granularity
    needs: frozenset[str] = frozenset()
    requires: frozenset[FactName] = frozenset()
    establishes: frozenset[FactName] = frozenset()
    invalidates: frozenset[FactName] = frozenset()
    repeatable: bool = True
    revision: int = 1
    domain: Domain = "weights"
    headline: tuple[str, ...] = ()
    family: str = ""
    exact: bool = False
    tunes: bool = True


@dataclass(frozen=True)
class PassResult:
    """What a pass hands back: the graph, whether it changed, what to tune, what was skipped, and measured facts.

    ``answers``: what the network answers to the validation data, if the pass had to know it; the runner then measures
    the stage by them and does not run the network again.
    """

    graph_module: GraphModule
    modified: bool
    tune: TuneRequest | None = None
    skipped: tuple[Skipped, ...] = ()
    profile: Mapping[str, Any] = field(default_factory=dict)
    answers: Answers | None = None


@dataclass(frozen=True)
class PassContext:
    """What the runner gives a pass.

    ``reference``: the network as captured, uncompressed (the teacher). ``example_inputs``: positional inputs, batch
    first. ``calibration``: batches of positional inputs, re-iterable. ``validation``: batches ``(inputs, targets)``
    held out from the *training* data. ``evaluate``: accuracy in [0, 1] on that validation data. ``tunes``: whether a
    trainer will serve a :class:`TuneRequest`. Each is ``None`` (``False``) where nobody gave it. ``round``: which of
    the :attr:`Pass.rounds` this is, from 0. ``entry``: the graph as it entered the pass, before its first round; shares
    of a whole are shares of that one. ``task``: what the network is for. ``execution``: where the run computes.
    """

    reference: GraphModule
    example_inputs: tuple[Tensor, ...]
    calibration: Iterable[tuple[Tensor, ...]] | None = None
    validation: Iterable[tuple[tuple[Tensor, ...], Tensor]] | None = None
    evaluate: Callable[[GraphModule], float] | None = None
    tunes: bool = False
    seed: int = 0
    round: int = 0
    entry: GraphModule | None = None
    task: Task = field(default_factory=classification)
    execution: Execution = field(default_factory=Execution)

    def rng(self, purpose: str) -> Generator:
        """A CPU generator determined by the seed and the purpose alone."""
        return derived_generator(self.seed, purpose)


class Pass(abc.ABC):
    """One compression method. Concrete passes are final frozen dataclasses whose fields are the options.

    A pass receives a graph it owns and may change it in place; the runner keeps the previous stage. It expects a valid
    graph and leaves one, it never trains (it asks with a :class:`TuneRequest`), and it never skips silently.
    """

    info: ClassVar[PassInfo]

    @abc.abstractmethod
    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Put the trainable form in place."""

    def finish(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Turn the tuned graph into the form the next stage starts from; the identity unless overridden."""
        return PassResult(graph_module, modified=False)

    @property
    def needs(self) -> frozenset[str]:
        """What this pass needs with its options; ``info.needs`` unless overridden by a subset of it."""
        return self.info.needs

    @property
    def invalidates(self) -> frozenset[FactName]:
        """The facts that this pass gives up with its options; ``info.invalidates`` unless overridden by a subset."""
        return self.info.invalidates

    @property
    def must_pay(self) -> bool:
        """Whether the runner takes the result back if it is no cheaper than the network before; no unless overridden.

        What is compared are the bit operations under ``strict``, those expected of a sample after a dynamic pass and
        those of one that leaves at no exit after a static pass; of equal ones the storage.
        """
        return False

    @property
    def rounds(self) -> int:
        """How often the runner applies and tunes this pass before it is finished; 1 unless overridden."""
        return 1

    @property
    def label(self) -> str:
        """The pass with its options as one line, e.g. ``quantize(4, 8, last=None)``.

        Options that have their default are left out, but for those of :attr:`PassInfo.headline`.
        """
        headline = [repr(getattr(self, name)) for name in self.info.headline]
        others = [f for f in _options(type(self)) if f.name not in self.info.headline]
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in others if getattr(self, f.name) != f.default]
        return f"{self.info.name}({', '.join([*headline, *changed])})"

    def spec(self) -> dict[str, Any]:
        """The pass as JSON: its name and every option; :meth:`from_spec` of the class rebuilds it."""
        fields = _options(type(self))
        return {"pass": self.info.name, **{f.name: _plain(getattr(self, f.name)) for f in fields}}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """The pass that :meth:`spec` describes; lists become tuples. Raises :class:`PassError` on an unknown option."""
        names = [f.name for f in _options(cls)]
        options = {key: _frozen(value) for key, value in spec.items() if key != "pass"}
        for key in options:
            if key not in names:
                raise PassError(f"{cls.info.name}: unknown option {key!r}; use one of {', '.join(sorted(names))}.")
        return cls(**options)

    def _check(self, holds: bool, option: str, allowed: str) -> None:
        """Raise the one sentence every wrong option gets, unless it holds."""
        if not holds:
            value = getattr(self, option)
            raise PassError(f"{self.info.name}: {option}={value!r} is out of range; use {allowed}.")

    def _tuned_by(self, option: str, context: PassContext) -> None:
        """Raise one sentence for an option that works while the network is tuned, if nothing will tune it."""
        if not context.tunes:
            raise PassError(
                f"{self.info.name}: {option}={getattr(self, option)!r} works while the network is tuned, and there is "
                f"no trainer; give trainer=..., or leave {option} out."
            )


def _options(kind: type[Pass]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind)  # type: ignore[arg-type]  # Pass is no dataclass, but every concrete one is


def is_number(value: object, least: float) -> bool:
    """Whether an option is a number (not a truth value, not NaN) of at least ``least``."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= least


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    raise PassError(
        f"option value {value!r} of type {type(value).__name__} has no JSON form; use plain values in a recipe."
    )


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True)
class Epoch:
    """Progress of a trainer: epoch ``index`` (from 1) of ``total``, mean loss, the trainer's metric on validation data.

    ``share``: how much of the epoch is done. A trainer tells of each finished epoch, with a share of 1; it may also
    tell of parts of one, with a smaller share, the mean loss so far and no metric.
    """

    index: int
    total: int
    loss: float
    metric: float | None
    share: float = 1.0


class Trainer(Protocol):
    """What the runner asks of a trainer; :class:`chainfx.training.Trainer` is the default one.

    ``fingerprint`` identifies all that decides what the trainer does to a network: the content of the training and the
    validation data, loss, epochs, rates, batch size, augmentation, precision and kind of device. Finished stages are
    found again by it, in other processes too, so trainers that give different results must have different ones.

    A trainer may have more. ``metric``, a :class:`Metric`, for one that measures something else than accuracy.
    ``task``, a :class:`Task`, for one of something else than classes. ``on(execution)``, the same trainer computing
    there. ``measure(graph_module)``, a :class:`Measurement` with the metric and the exit rates from one walk over the
    validation data, where :meth:`evaluate` and the rates would take two. One that trains in several processes at once
    has ``processes``, which of them this is and how many there are, and ``agreed(found)``, whether all found a stage.
    """

    @property
    def fingerprint(self) -> str:
        """A short text that changes with the data and the options."""

    def tune(
        self, graph_module: GraphModule, request: TuneRequest, *, seed: int, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Train in place as the request says; raises :class:`~chainfx.errors.TuningError` on a non-finite loss."""

    def evaluate(self, graph_module: nn.Module) -> float:
        """The metric on the validation data: unless it has another, accuracy in [0, 1] of logits (N, classes)."""

    @property
    def calibration(self) -> Iterable[tuple[Tensor, ...]]:
        """Batches of positional inputs from the training data, the same at every iteration."""

    @property
    def validation(self) -> Iterable[tuple[tuple[Tensor, ...], Tensor]]:
        """Batches ``(inputs, targets)`` held out from the training data, the same at every iteration."""


def metric_of(trainer: Trainer | None) -> Metric:
    """What a trainer measures: its ``metric``, or accuracy if it has none."""
    found: Metric = getattr(trainer, "metric", Metric())
    return found


def processes_of(trainer: Trainer | None) -> tuple[int, int]:
    """Which of the processes that a trainer trains in this is, from 0, and how many there are."""
    found: tuple[int, int] = getattr(trainer, "processes", (0, 1))
    return found


def all_found(trainer: Trainer | None, found: bool) -> bool:
    """Whether all processes that train together found a stage, where there are several."""
    ask: Callable[[bool], bool] | None = getattr(trainer, "agreed", None)
    return found if ask is None else ask(found)


def accepted(run: Callable[[], _T], batch: Sequence[Tensor], name: str) -> _T:
    """What ``run`` gives, which runs a network on a calibration batch.

    Raises :class:`~chainfx.errors.PassError`, in the name of the pass, if the network does not accept the batch.
    """
    try:
        return run()
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if lacks_memory(error):
            raise
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in batch)
        raise PassError(
            f"{name}: the network does not accept a calibration batch of shape {shapes}: "
            f"{str(error).splitlines()[0]}; give batches as the example inputs."
        ) from error


def task_of(trainer: Trainer | None) -> Task:
    """What a trainer trains for: its ``task``, or classification if it has none."""
    found: Task = getattr(trainer, "task", classification())
    return found


def trainer_on(trainer: Trainer | None, execution: Execution) -> Trainer | None:
    """The trainer computing as ``execution`` says, if it can be told."""
    place: Callable[[Execution], Trainer] | None = getattr(trainer, "on", None)
    return trainer if place is None else place(execution)
