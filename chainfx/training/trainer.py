"""The default trainer: tunes a compressed network, or trains one from scratch."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.errors import InputError
from chainfx.ir.graph import content_hash, derived_generator, device_of, recording, seeded
from chainfx.passes import Epoch, Execution, Measurement, Metric, Task, TuneRequest
from chainfx.training.augment import Augment
from chainfx.training.data import Batch, Batches, Data, InMemory
from chainfx.training.feeding import Feed, resident
from chainfx.training.machine import all_have, computes_bfloat16, process_count, processes, this_device
from chainfx.training.measuring import measure_final, measure_taken
from chainfx.training.modes import freeze, restored
from chainfx.training.rates import Average, make_optimizer
from chainfx.training.running import Run
from chainfx.training.terms import Loss

__all__ = ["Trainer"]

_DEFAULT_BATCH_SIZE = 128
_CALIBRATION_SAMPLES = 512


@dataclass(frozen=True)
class Trainer:
    """Trains networks for the task of some :class:`~chainfx.training.data.Data`; give it to :func:`chainfx.compile`.

    ``epochs``: per tuning and per :meth:`fit`. ``learning_rate``: for training from scratch; fine-tuning after a pass
    uses ``fine_tune_scale`` times it (one tenth in the protocol of the chain's paper). ``momentum``: of SGD.
    ``batch_size``: ``None`` for 128, or for what the DataLoaders give. ``precision``: of the forward pass in training;
    ``"auto"`` is bfloat16 where the device computes it natively. ``augment``: for training batches only. ``max_norm``:
    the gradient is clipped to this norm. ``compile``: train through :func:`torch.compile`, which pays for long runs.
    ``execution``: where all of it runs, and the precision of what is measured; :func:`chainfx.compile` gives its own.

    The network keeps the parameters of the epoch with the best validation metric (of equal ones the last), or, unless
    it is trained from scratch, those that it came with, if they were better than all. The same seed gives the same
    parameters, bit for bit, on the same machine; the global random state is left as it was.
    Several processes (``accelerate launch`` or ``torchrun``) share each batch, and the first of them keeps the stages.

    >>> from chainfx.training import digits
    >>> trainer = Trainer(digits(), epochs=1)
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> trainer.fit(net, seed=0) > 0.5
    True
    """

    data: Data
    _: KW_ONLY
    epochs: int = 30
    learning_rate: float = 0.05
    batch_size: int | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    fine_tune_scale: float = 0.1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    augment: Augment | None = None
    label_smoothing: float = 0.0
    max_norm: float = 5.0
    compile: bool = False
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        self._check(self.epochs >= 1, "epochs", "at least 1")
        self._check(self.learning_rate > 0, "learning_rate", "a number above 0")
        self._check(self.batch_size is None or self.batch_size >= 1, "batch_size", "at least 1")
        self._check(0 <= self.momentum < 1, "momentum", "0 or more, below 1")
        self._check(self.weight_decay >= 0, "weight_decay", "0 or more")
        self._check(self.fine_tune_scale > 0, "fine_tune_scale", "a number above 0")
        self._check(self.precision in ("auto", "float32", "bfloat16"), "precision", "'auto', 'float32' or 'bfloat16'")
        self._check(0 <= self.label_smoothing < 1, "label_smoothing", "0 or more, below 1")
        self._check(self.max_norm > 0, "max_norm", "a number above 0")
        if self.batch_size is not None and self.data.batch_size is not None:
            raise InputError(
                f"trainer: batch_size={self.batch_size} has no effect, the DataLoaders give batches of "
                f"{self.data.batch_size}; leave batch_size out."
            )

    def _check(self, holds: bool, option: str, allowed: str) -> None:
        if not holds:
            raise InputError(f"trainer: {option}={getattr(self, option)!r} is out of range; use {allowed}.")

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the data, every option, the kind of device and the number of processes.

        ``precision="auto"`` and ``batch_size=None`` count as what they mean on this machine and for this data.
        """
        names = [f.name for f in dataclasses.fields(self) if f.name not in ("data", "execution")]
        device = this_device() if self.execution.device is None else torch.device(self.execution.device)
        options = {name: getattr(self, name) for name in names}
        options |= {"precision": str(self._dtype(device)), "batch_size": self._batch_size}
        options |= {"device": device.type, "processes": process_count()}
        options |= {"task": self.task.name, "metric": repr(self.metric), "measuring": self.execution.words}
        return content_hash(self.data.fingerprint, repr(options))

    @property
    def task(self) -> Task:
        """What the data are for."""
        return self.data.purpose

    @property
    def metric(self) -> Metric:
        """What is measured: that of the task."""
        return self.task.metric

    def on(self, execution: Execution) -> Self:
        """The same trainer, computing as an execution says."""
        this_device()  # in one of several processes accelerate makes its own device the current one
        return dataclasses.replace(self, execution=execution)

    @property
    def processes(self) -> tuple[int, int]:
        """Which of the processes that train together this is, and how many there are; the first keeps the stages."""
        return processes()

    def agreed(self, found: bool) -> bool:
        """Whether all processes that train together found a stage; each of them has to ask."""
        return all_have(found)

    @cached_property
    def calibration(self) -> Iterable[tuple[Tensor, ...]]:
        """Batches of inputs from the training part, not augmented: 512 samples, the same at every iteration."""
        return self.data.calibration(_CALIBRATION_SAMPLES, self._measured_batch)

    @property
    def validation(self) -> Iterable[Batch]:
        """Batches ``(inputs, targets)`` held out from the training data, the same at every iteration."""
        return Batches(self.data.validation, self._measured_batch)

    def tune(
        self, graph_module: GraphModule, request: TuneRequest, *, seed: int, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Train in place as the request says; see :class:`~chainfx.passes.base.TuneRequest`.

        Afterwards ``requires_grad``, the training flags and the device are what they were; that the caller is in
        ``torch.no_grad()`` or ``torch.inference_mode()`` does not matter. Raises
        :class:`~chainfx.errors.TuningError` on an unknown parameter, a network that does not return logits of the
        classes of the data, or a loss or gradient that is not finite; and :class:`~chainfx.errors.DataError` on labels
        out of range, values that are no numbers, and inputs that the network does not accept.
        """
        self._train(graph_module, request, seed, on_epoch)

    def fit(self, model: nn.Module, *, seed: int = 0, on_epoch: Callable[[Epoch], None] = lambda epoch: None) -> float:
        """Train all parameters of ``model`` in place, at the full learning rate; its metric on the validation data.

        ``on_epoch`` is told of every finished epoch and, about four times a second, of the one that runs; see
        :class:`~chainfx.passes.Epoch`.
        """
        return self._train(model, TuneRequest(loss="task", from_scratch=True), seed, on_epoch)

    def evaluate(self, graph_module: nn.Module) -> float:
        """The metric of the final output on the validation data, accuracy in [0, 1] for a classifier; in eval mode."""
        return self._metric_of(graph_module, self.validation)

    def measure(self, graph_module: GraphModule) -> Measurement:
        """The metric on the validation data, each sample answered by the exit that it takes, and the exit rates."""
        with recording(), restored(graph_module):
            device = self._place(graph_module)
            return measure_taken(graph_module.to(device), self.validation, self.task, self.execution, device)

    def test(self, model: nn.Module) -> float:
        """The metric on the test data: use it once, to report, never to choose anything."""
        return self._metric_of(model, Batches(self.data.test, self._measured_batch))

    @property
    def _batch_size(self) -> int:
        return self.batch_size or self.data.batch_size or _DEFAULT_BATCH_SIZE

    @property
    def _measured_batch(self) -> int:
        return self.execution.batch_size or self._batch_size

    def _place(self, model: nn.Module) -> torch.device:
        """Where to compute: as told, else where a network on an accelerator is, else as accelerate chooses."""
        home = device_of(model)
        if self.execution.device is not None:
            return torch.device(self.execution.device)
        return this_device() if home.type == "cpu" else home

    def _dtype(self, device: torch.device) -> torch.dtype:
        if self.precision == "auto":
            return torch.bfloat16 if computes_bfloat16(device) else torch.float32
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def _metric_of(self, model: nn.Module, batches: Iterable[Batch]) -> float:
        with recording(), restored(model):
            device = self._place(model)
            return measure_final(model.to(device), batches, self.task, self.execution, device)

    def _train(self, model: nn.Module, request: TuneRequest, seed: int, on_epoch: Callable[[Epoch], None]) -> float:
        device = self._place(model)
        with recording(), restored(model), seeded(derived_generator(seed, "torch").initial_seed(), [device]):
            return self._run(model.to(device), request, seed, device).epochs(on_epoch)

    def _run(self, model: nn.Module, request: TuneRequest, seed: int, device: torch.device) -> Run:
        """What one training is made of; the parameters that it does not train are frozen from here on."""
        trained, split = freeze(model, request.parameters), resident(self.data.train, device)
        self._check_data()
        loss = Loss(
            request,
            model,
            self.task,
            split,
            smoothing=self.label_smoothing,
            caches=self.augment is None,
            device=device,
            seed=seed,
        )
        rate = self._rate(request)
        optimizer = make_optimizer(
            request,
            trained.values(),
            loss.modules.parameters(),
            rate=rate,
            momentum=self.momentum,
            decay=self.weight_decay if request.weight_decay is None else request.weight_decay,
        )
        return Run(
            model=model,
            trained=trained,
            loss=loss,
            optimizer=optimizer,
            feed=Feed(split, self._batch_size, self.augment, self.task, device, seed),
            validation=self.validation,
            task=self.task,
            metric=self.metric,
            schedule=request,
            total=self._epochs(request),
            rate=rate,
            max_norm=self.max_norm,
            dtype=self._dtype(device),
            execution=self.execution,
            device=device,
            compiled=self.compile,
            average=None if request.ema is None else Average(trained.values(), request.ema),
        )

    def _check_data(self) -> None:
        """Raise for targets in memory that the task cannot have; those of loaders are seen batch by batch."""
        split = self.data.train
        if isinstance(split, InMemory) and self.task.check is not None:
            self.task.check(split.targets, len(split))

    def _epochs(self, request: TuneRequest) -> int:
        return request.epochs_of(0) or self.epochs

    def _rate(self, request: TuneRequest) -> float:
        if request.learning_rate is not None:
            return request.learning_rate
        return self.learning_rate * (1 if request.from_scratch else self.fine_tune_scale)
