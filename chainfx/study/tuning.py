"""How the stages of a study are trained: as the paper defines each of them, or all in the same way."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.ir.graph import content_hash
from chainfx.passes import Epoch, Measurement, Task, TuneRequest, all_found, processes_of, task_of
from chainfx.training import Trainer

__all__ = ["StudyTrainer", "Training", "Tuning"]

Training = Literal["paper", "equal"]
"""How stages are trained: as the paper defines each of them, or all alike; see :class:`StudyTrainer`."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How long and how fast a study trains; the names are those of :class:`chainfx.training.Trainer`.

    ``epochs``: of every stage; ``original_epochs``: of the uncompressed network, ``None`` for the same.
    ``fine_tune_scale``: the share of the learning rate after pruning and quantization, in the paper's definition of
    the stages. ``equal_scale``: the share at which every stage is trained where training is held equal.
    """

    epochs: int = 30
    original_epochs: int | None = None
    learning_rate: float = 0.05
    batch_size: int = 128
    fine_tune_scale: float = 0.1
    equal_scale: float = 0.5
    precision: Literal["auto", "float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class StudyTrainer:
    """Serves the requests of passes in one of two ways, by the trainer that it is given.

    ``training="paper"``: as the pass asks, which is how the paper defines the stages: distillation at the full rate
    from the network before it, exit into exit; pruning and quantization with the task loss at a small rate; heads on a
    frozen body, which later stages train with it. ``"equal"``: every stage trains all parameters at ``rate`` with one
    loss, distillation from the original network into every output, so that orders differ in what they do to the
    network alone. Weight decay is on all parameters in both.
    """

    trainer: Trainer
    training: Training
    rate: float
    original: GraphModule

    @property
    def fingerprint(self) -> str:
        """That of the trainer and of how requests are served; the stage key has the original network."""
        served = ["paper"] if self.training == "paper" else ["equal", self.rate]
        return content_hash(self.trainer.fingerprint, served)

    @property
    def calibration(self) -> Iterable[tuple[Tensor, ...]]:
        """That of the trainer."""
        return self.trainer.calibration

    @property
    def validation(self) -> Iterable[tuple[tuple[Tensor, ...], Tensor]]:
        """The part held out for choices inside a stage."""
        return self.trainer.validation

    @property
    def processes(self) -> tuple[int, int]:
        """Which of the processes that train together this is, and how many there are; the first keeps the stages."""
        return processes_of(self.trainer)

    def agreed(self, found: bool) -> bool:
        """Whether all processes that train together found a stage; each of them has to ask."""
        return all_found(self.trainer, found)

    def tune(
        self, graph_module: GraphModule, request: TuneRequest, *, seed: int, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Train in place; see :class:`~chainfx.passes.Trainer`."""
        self.trainer.tune(graph_module, self.served(request), seed=seed, on_epoch=on_epoch)

    @property
    def task(self) -> Task:
        """That of the trainer."""
        return task_of(self.trainer)

    def measure(self, graph_module: GraphModule) -> Measurement:
        """Accuracy and exit rates on the part held out for choices, in one walk."""
        return self.trainer.measure(graph_module)

    def evaluate(self, graph_module: nn.Module) -> float:
        """Accuracy in [0, 1] on the part held out for choices."""
        return self.trainer.evaluate(graph_module)

    def trained(self, request: Mapping[str, Any]) -> str:
        """In words what is trained for a request, as :meth:`~chainfx.passes.TuneRequest.plain` has it."""
        usual, rate = self.trainer, self.rate
        which, loss = "all parameters", "distillation from the original network"
        if self.training == "paper":
            names, scale = request.get("parameters"), 1.0 if request.get("from_scratch") else usual.fine_tune_scale
            which = which if names is None else f"{len(names)} tensors, the rest frozen"
            loss = "distillation" if request.get("loss") == "kd" else "the loss of the task"
            rate = request.get("learning_rate") or usual.learning_rate * scale
        return f"{which}, by {loss}, at a rate of {rate:g}, for {usual.epochs} epochs"

    def served(self, request: TuneRequest) -> TuneRequest:
        """The request that the trainer gets instead."""
        if self.training == "paper":
            loss = "task" if request.loss == "recover" else request.loss
            return replace(request, loss=loss, distil_exits=True, decay="all")
        return TuneRequest(
            loss="kd",
            teacher=self.original,
            learning_rate=self.rate,
            from_scratch=True,
            distil_exits=True,
            decay="all",
        )
