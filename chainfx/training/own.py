"""A training loop of one's own in the place of the default one."""

from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.errors import TuningError
from chainfx.ir.graph import content_hash, derived_generator, device_of, recording, seeded
from chainfx.passes import Epoch, Execution, Measurement, Metric, Task, TuneRequest
from chainfx.training.data import Data
from chainfx.training.modes import freeze, restored, set_modes
from chainfx.training.terms import Loss
from chainfx.training.trainer import Trainer

__all__ = ["OwnTrainer", "loss_of"]

Loop = Callable[[GraphModule, TuneRequest], Any]


@dataclass(frozen=True)
class OwnTrainer:
    """Tunes by a function, ``loop(graph_module, request)``; calibrates and measures as the default trainer does.

    The function trains in place what has ``requires_grad``, which is what the request names, in the modes that are set,
    for instance with plain torch, accelerate, Lightning or the ``Trainer`` of transformers; what it returns does not
    matter. :func:`loss_of` gives the loss that is asked for. ``name``: finished stages are found again by it, so change
    it whenever the function or what it reads changes. Torch's global generator is seeded before, and given back.

    >>> from chainfx.training import digits
    >>> def loop(graph_module, request):
    ...     data, optimizer = digits(), torch.optim.SGD(graph_module.parameters(), 0.05)
    ...     loss = loss_of(graph_module, request, data)
    ...     for batch in data.train.batches(128, torch.Generator().manual_seed(0)):
    ...         optimizer.zero_grad()
    ...         loss(graph_module, batch).backward()
    ...         optimizer.step()
    >>> trainer = OwnTrainer(digits(), loop, "plain SGD, one epoch")
    """

    data: Data
    loop: Loop
    name: str
    _: KW_ONLY
    batch_size: int | None = None
    execution: Execution = field(default_factory=Execution)

    @cached_property
    def _usual(self) -> Trainer:
        return Trainer(self.data, batch_size=self.batch_size, execution=self.execution)

    @property
    def fingerprint(self) -> str:
        """Changes with the data, the name, and how is measured."""
        return content_hash(self._usual.fingerprint, "own", self.name)

    @property
    def task(self) -> Task:
        """What the data are for."""
        return self._usual.task

    @property
    def metric(self) -> Metric:
        """That of the task."""
        return self._usual.metric

    @property
    def calibration(self) -> Iterable[tuple[Tensor, ...]]:
        """Batches of inputs from the training part."""
        return self._usual.calibration

    @property
    def validation(self) -> Iterable[tuple[tuple[Tensor, ...], Any]]:
        """Batches that are held out from the training data."""
        return self._usual.validation

    @property
    def processes(self) -> tuple[int, int]:
        """Which of the processes that train together this is, and how many there are; the first keeps the stages."""
        return self._usual.processes

    def agreed(self, found: bool) -> bool:
        """Whether all processes that train together found a stage; each of them has to ask."""
        return self._usual.agreed(found)

    def on(self, execution: Execution) -> Self:
        """The same trainer, measuring as an execution says."""
        return replace(self, execution=execution)

    def tune(
        self, graph_module: GraphModule, request: TuneRequest, *, seed: int, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Let the function train; raises :class:`TuningError` if it leaves parameters that are not finite."""
        start = seeded(derived_generator(seed, "torch").initial_seed(), [device_of(graph_module)])
        with recording(), restored(graph_module), start:
            set_modes(graph_module, freeze(graph_module, request.parameters))
            self.loop(graph_module, request)
        for name, parameter in graph_module.named_parameters():
            parameter.grad = None
            if not bool(parameter.isfinite().all()):
                raise TuningError(
                    f"tuning: the training loop {self.name!r} left values in {name!r} that are not finite; "
                    "lower its learning rate."
                )

    def evaluate(self, graph_module: nn.Module) -> float:
        """The metric of the final output on the validation data."""
        return self._usual.evaluate(graph_module)

    def measure(self, graph_module: GraphModule) -> Measurement:
        """The metric and the exit rates in one walk."""
        return self._usual.measure(graph_module)

    def test(self, model: nn.Module) -> float:
        """The metric on the test data."""
        return self._usual.test(model)


def loss_of(graph_module: GraphModule, request: TuneRequest, data: Data, *, seed: int = 0) -> Loss:
    """What a request asks to be minimised, for a training loop of one's own: ``loss(network, (inputs, targets))``.

    ``network`` is ``loss.network``, or a wrapper of it such as ``DistributedDataParallel``; that is ``graph_module``
    itself unless values inside of it are compared with those of the teacher. Train the parameters of ``loss.modules``
    too, if there are any.
    """
    device = device_of(graph_module)
    return Loss(request, graph_module, data.purpose, data.train, smoothing=0.0, caches=False, device=device, seed=seed)
