"""The default trainer: tunes a compressed classifier, or trains one from scratch."""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from itertools import islice
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.errors import DataError, InputError, TuningError
from chainfx.ir.graph import content_hash, derived_generator, recording
from chainfx.passes import Epoch, Metric, TuneRequest
from chainfx.training.augment import Augment
from chainfx.training.checks import answers, check_labels
from chainfx.training.data import Batch, Batches, Data
from chainfx.training.losses import distillation_loss, task_loss
from chainfx.training.machine import (
    computes_bfloat16,
    is_first_process,
    own_share,
    placed,
    process_count,
    same_buffers,
    shared,
    this_device,
)
from chainfx.training.modes import freeze, restored, set_modes

__all__ = ["Trainer", "rate_factor"]

_DEFAULT_BATCH_SIZE = 128
_CALIBRATION_SAMPLES = 512
_SECONDS = 0.25  # between two reports on an epoch that goes on

Objective = Callable[[object, tuple[Tensor, ...], Tensor], Tensor]


def rate_factor(step: int, total: int) -> float:
    """The learning rate of ``step`` (from 0) of ``total``, as a share of the full one: linear warm-up, then a cosine.

    The warm-up takes 5 % of the steps, at least one; the cosine (Loshchilov, Hutter 2017) ends at 0 after the last.
    """
    warmup = max(1, total // 20)
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup + 1) / (total - warmup + 1))) / 2


@dataclass(frozen=True)
class Trainer:
    """Trains classifiers on :class:`~chainfx.training.data.Data`; give it to :func:`chainfx.compile`.

    ``epochs``: per tuning and per :meth:`fit`. ``learning_rate``: for training from scratch; fine-tuning after a pass
    uses ``fine_tune_scale`` times it (one tenth in the protocol of the chain's paper). ``momentum``: of SGD.
    ``batch_size``: ``None`` for 128, or for what the DataLoaders give. ``precision``: of the forward pass in training;
    ``"auto"`` is bfloat16 where the device computes it natively. Evaluation is always in float32. ``augment``: for
    training batches only. ``max_norm``: the gradient is clipped to this norm.

    The network keeps the parameters of the epoch with the best validation accuracy (of equal ones the last), or, unless
    it is trained from scratch, those that it came with, if they were better than all. The same seed gives the same
    parameters, bit for bit, on the same machine; the global random state is left as it was.
    Several processes (``accelerate launch`` or ``torchrun``) share each batch.

    >>> from chainfx.training import digits
    >>> trainer = Trainer(digits(), epochs=1)
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> trainer.fit(net, seed=0) > 0.5
    True
    """

    metric: ClassVar[Metric] = Metric()

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
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "data"}
        options |= {"precision": str(self._dtype(this_device())), "batch_size": self._batch_size}
        options |= {"device": this_device().type, "processes": process_count()}
        return content_hash(self.data.fingerprint, repr(options))

    @cached_property
    def calibration(self) -> Iterable[tuple[Tensor, ...]]:
        """Batches of inputs from the training part, not augmented: 512 samples, the same at every iteration."""
        return self.data.calibration(_CALIBRATION_SAMPLES, self._batch_size)

    @property
    def validation(self) -> Iterable[Batch]:
        """Batches ``(inputs, targets)`` held out from the training data, the same at every iteration."""
        return Batches(self.data.validation, self._batch_size)

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
        """Train all parameters of ``model`` in place, at the full learning rate; its validation accuracy in [0, 1].

        ``on_epoch`` is told of every finished epoch and, about four times a second, of the one that runs; see
        :class:`~chainfx.passes.Epoch`.
        """
        return self._train(model, TuneRequest(from_scratch=True), seed, on_epoch)

    def evaluate(self, graph_module: nn.Module) -> float:
        """Accuracy in [0, 1] of the final output on the validation data, in eval mode and float32."""
        return self._accuracy_of(graph_module, self.validation)

    def test(self, model: nn.Module) -> float:
        """Accuracy in [0, 1] on the test data: use it once, to report, never to choose anything."""
        return self._accuracy_of(model, Batches(self.data.test, self._batch_size))

    @property
    def _batch_size(self) -> int:
        return self.batch_size or self.data.batch_size or _DEFAULT_BATCH_SIZE

    def _dtype(self, device: torch.device) -> torch.dtype:
        if self.precision == "auto":
            return torch.bfloat16 if computes_bfloat16(device) else torch.float32
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def _accuracy_of(self, model: nn.Module, batches: Iterable[Batch]) -> float:
        with recording(), restored(model):
            return _accuracy(model.to(this_device()), batches, this_device(), self.data.num_classes)

    def _train(self, model: nn.Module, request: TuneRequest, seed: int, on_epoch: Callable[[Epoch], None]) -> float:
        device = this_device()
        random_devices = [device] if device.type == "cuda" else []
        with recording(), restored(model), torch.random.fork_rng(devices=random_devices):
            torch.manual_seed(derived_generator(seed, "torch").initial_seed())
            trained = freeze(model, request.parameters)
            run = _Run(
                trainer=self,
                model=model.to(device),
                trained=trained,
                optimizer=self._optimizer(request, trained),
                rate=self._rate(request),
                objective=self._objective(request, device),
                penalty=request.penalty,
                device=device,
                seed=seed,
                from_scratch=request.from_scratch,
            )
            return run.epochs(on_epoch)

    def _rate(self, request: TuneRequest) -> float:
        if request.learning_rate is not None:
            return request.learning_rate
        return self.learning_rate * (1 if request.from_scratch else self.fine_tune_scale)

    def _optimizer(self, request: TuneRequest, trained: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
        rate = self._rate(request)
        decay = self.weight_decay if request.weight_decay is None else request.weight_decay
        if request.optimizer == "adam":
            return torch.optim.Adam(trained.values(), rate, weight_decay=decay)
        return torch.optim.SGD(trained.values(), rate, momentum=self.momentum, weight_decay=decay)

    def _objective(self, request: TuneRequest, device: torch.device) -> Objective:
        """The loss as a function of (network output, inputs, targets)."""
        if request.loss == "task":
            return lambda output, _, targets: task_loss(output, targets, label_smoothing=self.label_smoothing)
        if request.teacher is None:
            raise TuningError("tuning with loss='kd' needs a teacher; give TuneRequest(teacher=...).")
        teacher = copy.deepcopy(request.teacher).to(device).eval()

        def distillation(output: object, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
            with torch.no_grad():
                answer = teacher(*inputs)
            return distillation_loss(
                output,
                answer,
                targets,
                temperature=request.temperature,
                hard_weight=request.hard_weight,
                soft_weight=request.soft_weight,
                exits=request.distil_exits,
                label_smoothing=self.label_smoothing,
            )

        return distillation


@dataclass(frozen=True)
class _Run:
    """One training of one network: everything that does not change from step to step."""

    trainer: Trainer
    model: nn.Module
    trained: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    rate: float
    objective: Objective
    penalty: Callable[[nn.Module], Tensor] | None
    device: torch.device
    seed: int
    from_scratch: bool

    def epochs(self, on_epoch: Callable[[Epoch], None]) -> float:
        """Run all epochs and leave the best state in the model, which may be the first; its validation accuracy."""
        if self.from_scratch:  # else the accuracy is measured first, on all batches
            self._refuse_misfits()
        network, total = shared(self.model, self.device), self.trainer.epochs
        best, state = (-1.0, {}) if self.from_scratch else (self._accuracy(), self._state())
        for index in range(1, total + 1):
            set_modes(self.model, self.trained)
            loss = self._epoch(network, index, on_epoch)
            same_buffers(self.model)
            metric = self._accuracy()
            if metric >= best:
                best, state = metric, self._state()
            if is_first_process():
                on_epoch(Epoch(index, total, loss, metric))
        self.model.load_state_dict(state)
        self.optimizer.zero_grad()
        return best

    def _refuse_misfits(self) -> None:
        """Raise if network and data do not fit together, seen from one batch; no random number of training is drawn."""
        self.model.eval()
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
        ):  # a DataLoader draws its seed from the global generator
            for batch in islice(self.trainer.validation, 1):
                answers(self.model, placed(batch, self.device), self.trainer.data.num_classes)

    def _accuracy(self) -> float:
        return _accuracy(self.model, self.trainer.validation, self.device, self.trainer.data.num_classes)

    def _state(self) -> dict[str, Tensor]:
        return {key: value.detach().clone() for key, value in self.model.state_dict().items()}

    def _epoch(self, network: nn.Module, index: int, on_epoch: Callable[[Epoch], None]) -> float:
        """Train one epoch and tell of parts of it, about four a second; the mean loss of its steps."""
        trainer = self.trainer
        split, size = trainer.data.train, trainer._batch_size
        steps, losses = split.steps(size), []
        crops = derived_generator(self.seed, f"{index}/augment")
        told = time.monotonic()
        for step, batch in enumerate(split.batches(size, derived_generator(self.seed, f"{index}/shuffle"))):
            rate = self.rate * rate_factor((index - 1) * steps + step, trainer.epochs * steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            where = f"at epoch {index} of {trainer.epochs}, step {step + 1} of {steps}, with learning rate {rate:.3g}"
            losses.append(self._step(network, self._prepared(batch, crops), where))
            if step + 1 < steps and time.monotonic() - told >= _SECONDS and is_first_process():
                told = time.monotonic()
                on_epoch(Epoch(index, trainer.epochs, sum(losses) / len(losses), None, (step + 1) / steps))
        if not losses:
            raise TuningError("tuning: the training data gave no batch; use a smaller batch size or more data.")
        return sum(losses) / len(losses)

    def _prepared(self, batch: Batch, crops: torch.Generator) -> Batch:
        inputs, targets = batch
        if self.trainer.augment is not None:
            inputs = tuple(self.trainer.augment(tensor, crops) for tensor in inputs)
        return placed((inputs, targets), self.device)

    def _step(self, network: nn.Module, batch: Batch, where: str) -> float:
        """One optimizer step; its loss."""
        inputs, targets = own_share(batch)
        check_labels(targets, len(inputs[0]), self.trainer.data.num_classes)
        dtype = self.trainer._dtype(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            loss = self.objective(network(*inputs), inputs, targets)
        if self.penalty is not None:
            loss = loss + self.penalty(self.model)
        _refuse_infinite("loss", loss.item(), where)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.trained.values(), self.trainer.max_norm)
        _refuse_infinite("gradient norm", norm.item(), where)
        with torch.device("cpu"):  # an older Adam of torch counts its steps on the default device
            self.optimizer.step()
        return loss.item()


def _refuse_infinite(what: str, value: float, where: str) -> None:
    if not math.isfinite(value):
        raise TuningError(
            f"tuning: the {what} is {value} {where}; lower the trainer's learning_rate, "
            f"or look for values that are not finite in the data."
        )


@torch.no_grad()
def _accuracy(model: nn.Module, batches: Iterable[Batch], device: torch.device, num_classes: int) -> float:
    """Share of samples the final output classifies correctly; leaves the model in eval mode."""
    model.eval()
    right = count = 0
    for batch in batches:
        here = placed(batch, device)
        right += int((answers(model, here, num_classes).argmax(dim=1) == here[1]).sum())
        count += len(here[1])
    if not count:
        raise DataError("the data to evaluate on gave no batch; check the length of its DataLoader.")
    return right / count
