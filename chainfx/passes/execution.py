"""Where a run computes, and what is measured of a network there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from chainfx.errors import InputError
from chainfx.ir.graph import answer_of

__all__ = ["Answers", "Execution", "Measurement"]

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Execution:
    """Where and how a run computes: one value for the graph, calibration, measuring, importance and tuning.

    ``device``: such as ``"cuda"`` or ``"cpu"``; ``None`` for CUDA where torch has it, else where the
    network is. The result of :func:`chainfx.compile` is where the network was. ``precision``: of what is measured; in
    half precision the layers run under :class:`torch.autocast`, quantizers and the metric stay in float32. Training has
    a precision of its own, the trainer's. ``batch_size``: of calibration and measuring, ``None`` for the trainer's.

    >>> Execution("cpu", precision="bfloat16").place(torch.device("cpu"))
    device(type='cpu')
    """

    device: str | None = None
    precision: Precision = "float32"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        self._check(self.precision in get_args(Precision), "precision", "'float32', 'bfloat16' or 'float16'")
        size = self.batch_size
        self._check(size is None or (type(size) is int and size >= 1), "batch_size", "None or a whole number from 1")
        if self.device is not None:
            self._check(isinstance(self.device, str), "device", "the name of a device, such as 'cuda'")
            try:
                found = torch.device(self.device)
            except RuntimeError as error:
                raise InputError(
                    f"execution: device={self.device!r} is no device of torch; use 'cpu', 'cuda' or 'cuda:1'."
                ) from error
            if found.type != "cpu" and not _has(found.type):
                raise InputError(
                    f"execution: device={self.device!r} is not there on this machine; use 'cpu' or leave it out."
                )

    def _check(self, holds: bool, option: str, allowed: str) -> None:
        if not holds:
            raise InputError(f"execution: {option}={getattr(self, option)!r} is out of range; use {allowed}.")

    def place(self, home: torch.device) -> torch.device:
        """The device to compute on, for a network that is at ``home``."""
        if self.device is not None:
            return torch.device(self.device)
        return torch.device("cuda") if home.type == "cpu" and _has("cuda") else home

    @contextmanager
    def measuring(self, device: torch.device) -> Iterator[None]:
        """No gradients, and the precision, for the time of a ``with`` block."""
        dtype = getattr(torch, self.precision)
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            yield

    @property
    def words(self) -> str:
        """What of it decides results beyond the device, such as ``"bfloat16, batches of 64"``; empty by default."""
        precision = [] if self.precision == "float32" else [self.precision]
        size = [] if self.batch_size is None else [f"batches of {self.batch_size}"]
        return ", ".join([*precision, *size])


def _has(kind: str) -> bool:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator is not None and accelerator.type == kind


@dataclass(frozen=True)
class Answers:
    """What a network with exits answers to all N samples of the validation data, in the numbers that decide.

    ``confidences``: how sure each exit is, shape (N,), in the order of the exits. ``tallies``: what the task tallies of
    each sample alone, shape (N, k), at every exit and at the final output.
    """

    confidences: tuple[Tensor, ...]
    tallies: tuple[Tensor, ...]

    def sums(self, index: Tensor) -> Tensor:
        """The tally (k,) of all samples, each answered by the output at its place in ``index``, shape (N,)."""
        return answer_of(self.tallies, index).sum(dim=0)


@dataclass(frozen=True)
class Measurement:
    """What is measured of a network on validation data, in one walk over them.

    ``metric``: the trainer's, each sample answered by the exit that it takes. ``exit_rates``: the share of samples that
    leaves at each exit, by its name.
    """

    metric: float | None = None
    exit_rates: Mapping[str, float] = field(default_factory=dict)
