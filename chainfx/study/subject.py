"""What a study is about: a network that each seed trains anew, and data in four parts."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Self

import torch
from torch import Tensor, nn

from chainfx.errors import StudyError
from chainfx.ir.graph import content_hash, seeded
from chainfx.models import resolve_model
from chainfx.scheduler import Ground
from chainfx.study.design import Design
from chainfx.study.tuning import Tuning
from chainfx.training import Batches, Data, Split, Trainer, halve_validation, open_data

__all__ = ["Subject"]

_EXAMPLES = 2


@dataclass(frozen=True)
class Subject:
    """The network and the data of a study.

    ``network`` makes the network with new weights from torch's global generator; ``data`` in memory. With several
    worker processes both are sent to them, so ``network`` is then a function of a module, or a ``functools.partial`` of
    one. What ``data`` holds out is halved: :attr:`chooses` serves choices inside a stage (the best epoch), and
    :attr:`judges` is what the study's points are measured on; the test part is measured too and decides nothing.
    """

    network: Callable[[], nn.Module]
    data: Data

    @classmethod
    def of(cls, design: Design) -> Self:
        """What the design names; raises as :func:`chainfx.models.resolve_model` and the data sources do."""
        network, data = dict(design.network), dict(design.data)
        try:
            made = partial(resolve_model, network["name"], **network.get("options", {}))
            return cls(made, open_data(data.pop("source"), **data))
        except (KeyError, TypeError) as error:
            raise StudyError(
                f"design: network={network} or data={dict(design.data)} cannot be opened ({error}); "
                "give network a 'name' and 'options', and data a 'source' and its options."
            ) from error

    @property
    def chooses(self) -> Data:
        """The data with half of what is held out."""
        return self._halves[0]

    @property
    def judges(self) -> Split:
        """The other half."""
        return self._halves[1]

    @cached_property
    def _halves(self) -> tuple[Data, Split]:
        return halve_validation(self.data)

    @property
    def resolution(self) -> float:
        """The smallest difference of accuracy that the part which judges can show: one sample of it."""
        return 1 / len(self.judges)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the data and with the structure of the network, not with its weights."""
        model = self.network()
        shapes = [f"{name} {tuple(value.shape)}" for name, value in model.state_dict().items()]
        return content_hash(self.data.fingerprint, repr(model), shapes)

    @cached_property
    def ground(self) -> Ground:
        """What evidence from a study of it says it was measured on: network and data."""
        return replace(Ground.of(self.network(), self.data), device="")

    @property
    def example_inputs(self) -> tuple[Tensor, ...]:
        """The inputs that networks are captured and counted with."""
        return self.data.example_inputs(_EXAMPLES)

    def judging(self, batch_size: int) -> Batches:
        """Batches of the part that judges."""
        return Batches(self.judges, batch_size)

    def trainer(self, tuning: Tuning, epochs: int) -> Trainer:
        """The trainer of stages, or of the original, that trains for so many epochs."""
        return Trainer(
            self.chooses,
            epochs=epochs,
            learning_rate=tuning.learning_rate,
            batch_size=tuning.batch_size,
            fine_tune_scale=tuning.fine_tune_scale,
            precision=tuning.precision,
        )

    def seconds_of_epoch(self, tuning: Tuning) -> float:
        """About how long an epoch of training the original network takes here, from the time of one step."""
        with torch.random.fork_rng(devices=[]):
            model = self.network()
        inputs, _ = next(self.chooses.train.batches(tuning.batch_size))
        for _ in range(2):  # the first warms up
            start = time.perf_counter()
            model(*inputs).sum().backward()
        return (time.perf_counter() - start) * self.chooses.train.steps(tuning.batch_size)

    def original(self, tuning: Tuning, seed: int) -> nn.Module:
        """The uncompressed network of a seed, trained, in eval mode; the global random state stays as it was."""
        with seeded(seed):
            model = self.network()
        self.trainer(tuning, tuning.original_epochs or tuning.epochs).fit(model, seed=seed)
        return model.eval()
