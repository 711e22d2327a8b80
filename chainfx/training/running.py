"""One training of one network: epochs, steps, the best state, and what is told of them."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from chainfx.errors import TuningError
from chainfx.passes import Epoch, Execution, Metric, Schedule, Task
from chainfx.training.checks import answers
from chainfx.training.data import Batch
from chainfx.training.feeding import Feed
from chainfx.training.machine import (
    is_first_process,
    placed,
    process_count,
    same_buffers,
    same_gradients,
    shared,
)
from chainfx.training.measuring import measure_final
from chainfx.training.modes import set_modes
from chainfx.training.rates import Average, rate_factor
from chainfx.training.terms import Loss

__all__ = ["Run"]

_SECONDS = 0.25  # between two looks at an epoch that goes on


@dataclass(frozen=True)
class Run:
    """Everything of a training that does not change from step to step."""

    model: nn.Module
    trained: dict[str, nn.Parameter]
    loss: Loss
    optimizer: torch.optim.Optimizer
    feed: Feed
    validation: Iterable[Batch]
    task: Task
    metric: Metric
    schedule: Schedule
    total: int
    rate: float
    max_norm: float
    dtype: torch.dtype
    execution: Execution
    device: torch.device
    compiled: bool
    average: Average | None = field(default=None)

    def epochs(self, on_epoch: Callable[[Epoch], None]) -> float:
        """Run all epochs and leave the best state in the model, which may be the first; its metric on validation."""
        from_scratch = self.schedule.from_scratch
        if from_scratch:  # else the metric is measured first, on all batches
            self._refuse_misfits()
        network = self._network()
        best, state = (None, {}) if from_scratch else (self._measured(), self._state())
        left = self.schedule.patience
        for index in range(1, self.total + 1):
            set_modes(self.model, self.trained)
            loss = self._epoch(network, index, on_epoch)
            same_buffers(self.model)
            with self._averaged():
                metric = self._measured()
                gained = best is None or self.metric.loss(best, metric) < 0
                if best is None or self.metric.loss(best, metric) <= 0:
                    best, state = metric, self._state()
            if is_first_process():
                on_epoch(Epoch(index, self.total, loss, metric))
            if left is not None:
                left = self.schedule.patience if gained else left - 1
                if not left:
                    break
        self.model.load_state_dict(state)
        if self.device.type == "cuda":
            self.model.to(memory_format=torch.contiguous_format)
        self.optimizer.zero_grad()
        assert best is not None
        return best

    def _network(self) -> nn.Module:
        """What is called in training: the model as the loss needs it, for several processes, compiled if so asked."""
        network = self.loss.network
        if self.device.type == "cuda":
            network.to(memory_format=torch.channels_last)
        network = shared(network, self.device)
        return torch.compile(network) if self.compiled else network  # type: ignore[return-value]  # a module of torch's

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.average is None else self.average.instead()

    def _refuse_misfits(self) -> None:
        """Raise if network and data do not fit together, seen from one batch; no random number of training is drawn."""
        self.model.eval()
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
        ):  # a DataLoader draws its seed from the global generator
            for batch in islice(self.validation, 1):
                answers(self.model, placed(batch, self.device), self.task)

    def _measured(self) -> float:
        return measure_final(self.model, self.validation, self.task, self.execution, self.device)

    def _state(self) -> dict[str, Tensor]:
        return {key: value.detach().clone() for key, value in self.model.state_dict().items()}

    def _epoch(self, network: nn.Module, index: int, on_epoch: Callable[[Epoch], None]) -> float:
        """Train one epoch and tell of parts of it, about four a second; the mean loss of its steps.

        Losses stay on the device until then, so that no step waits for it.
        """
        steps, seen = self.feed.steps, _Seen()
        told = time.monotonic()
        for step, (batch, places) in enumerate(self.feed.epoch(index)):
            factor = rate_factor((index - 1) * steps + step, self.total * steps, self.schedule.restarts)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * factor
            where = f"at epoch {index} of {self.total}, step {step + 1} of {steps}"
            seen.add(*self._step(network, batch, places), f"{where}, with learning rate {self.rate * factor:.3g}")
            if step + 1 < steps and time.monotonic() - told >= _SECONDS:
                told = time.monotonic()
                mean = seen.mean()
                if is_first_process():
                    on_epoch(Epoch(index, self.total, mean, None, (step + 1) / steps))
        if not seen.wheres:
            raise TuningError("tuning: the training data gave no batch; use a smaller batch size or more data.")
        return seen.mean()

    def _loss(self, network: nn.Module, batch: Batch, places: Tensor | None) -> Tensor:
        try:
            return self.loss(network, batch, places)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):  # what torch's BatchNorm says
                raise
            raise TuningError(
                f"tuning: a batch has {len(batch[0][0])} sample, and BatchNorm cannot train on one value a channel; "
                "use a batch size of at least 2 for each process, and drop_last=True in a DataLoader."
            ) from error

    def _step(self, network: nn.Module, batch: Batch, places: Tensor | None) -> tuple[Tensor, Tensor]:
        """One optimizer step; its loss and the norm of its gradient, both of shape ()."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = self._loss(network, batch, places)
        loss.backward()
        if process_count() > 1:
            same_gradients(self.loss.modules)
        norm = nn.utils.clip_grad_norm_(self.trained.values(), self.max_norm)
        with torch.device("cpu"):  # an older Adam of torch counts its steps on the default device
            self.optimizer.step()
        if self.average is not None:
            self.average.step()
        return loss.detach(), norm


class _Seen:
    """The losses and gradient norms of the steps of an epoch so far."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.wheres: list[str] = []

    def add(self, loss: Tensor, norm: Tensor, where: str) -> None:
        self.losses.append(loss)
        self.norms.append(norm)
        self.wheres.append(where)

    def mean(self) -> float:
        """The mean loss; raises :class:`TuningError` for the first step whose loss or gradient was not finite."""
        losses, norms = (
            torch.stack([each.float() for each in values]).tolist() for values in (self.losses, self.norms)
        )
        for loss, norm, where in zip(losses, norms, self.wheres, strict=True):
            _refuse_infinite("loss", loss, where)
            _refuse_infinite("gradient norm", norm, where)
        return float(sum(losses) / len(losses))


def _refuse_infinite(what: str, value: float, where: str) -> None:
    if not math.isfinite(value):
        raise TuningError(
            f"tuning: the {what} is {value} {where}; lower the trainer's learning_rate, "
            f"or look for values that are not finite in the data."
        )
