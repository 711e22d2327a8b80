"""How the learning rate goes, which parameters decay, and the running average of parameters."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from chainfx.passes import TuneRequest

__all__ = ["Average", "make_optimizer", "rate_factor"]


def rate_factor(step: int, total: int, restarts: int = 0) -> float:
    """The learning rate of ``step`` (from 0) of ``total``, as a share of the full one: linear warm-up, then a cosine.

    The warm-up takes 5 % of the steps, at least one; the cosine (Loshchilov, Hutter 2017) ends at 0 after the last.
    With ``restarts`` it ends so many times before and begins anew at the full rate, in parts of equal length.
    """
    part = math.ceil(total / (restarts + 1))
    place, at = divmod(step, part)
    length = min(part, total - place * part)
    warmup = max(1, part // 20) if place == 0 else 0
    if at < warmup:
        return (at + 1) / warmup
    return (1 + math.cos(math.pi * (at - warmup + (place == 0)) / (length - warmup + (place == 0)))) / 2


def make_optimizer(
    request: TuneRequest,
    trained: Iterable[nn.Parameter],
    modules: Iterable[nn.Parameter],
    *,
    rate: float,
    momentum: float,
    decay: float,
) -> torch.optim.Optimizer:
    """SGD or Adam, in one kernel on a GPU, over what is trained and the modules of the loss.

    Weight decay is on parameters of two or more dimensions, or on all that are trained, as the request says.
    """
    trained, decays = list(trained), request.decay == "all"
    weights = [each for each in trained if decays or each.dim() >= 2]
    spared = [*(each for each in trained if not decays and each.dim() < 2), *modules]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": spared, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {"fused": True} if all(each.device.type == "cuda" for each in trained) else {}
    if request.optimizer == "adam":
        return torch.optim.Adam(groups, rate, weight_decay=decay, **options)
    return torch.optim.SGD(groups, rate, momentum=momentum, weight_decay=decay, **options)


class Average:
    """The exponential running average of parameters: each step keeps a share ``keep`` of it (Polyak, Juditsky 1992).

    In the first steps the share is smaller, ``(1 + steps) / (10 + steps)``, so that the average forgets where it began.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], keep: float) -> None:
        self.parameters, self.keep, self.steps = list(parameters), keep, 0
        self.averages = [each.detach().clone() for each in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Take the present parameters into the average."""
        keep = min(self.keep, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        torch._foreach_lerp_(self.averages, [each.detach() for each in self.parameters], 1 - keep)

    @contextmanager
    def instead(self) -> Iterator[None]:
        """The averages in the place of the parameters, for the time of a ``with`` block."""
        own = [each.detach().clone() for each in self.parameters]
        self._put(self.averages)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
