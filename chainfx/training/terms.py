"""The loss of one tuning, made of what is asked: the terms, the teacher, and the modules that are trained with them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.errors import TuningError
from chainfx.ir.graph import derived_generator, exits_of
from chainfx.passes import Task, TuneRequest
from chainfx.training.checks import outputs_of
from chainfx.training.contrast import Contrast
from chainfx.training.data import Batch, InMemory, Split
from chainfx.training.features import Hints, attention_loss
from chainfx.training.losses import self_distillation, soft_sum, task_sum
from chainfx.training.mixing import Mixing
from chainfx.training.sparsity import GroupLasso
from chainfx.training.taps import Tapped, hinted, penultimate, widths
from chainfx.training.teaching import Teacher

__all__ = ["Loss"]


class Loss:
    """What one tuning minimises, as a function of a network and a batch.

    ``network`` is what the trainer calls in place of the model: the model itself, or one that also returns the values
    that a term compares. ``modules`` are trained with it and dropped afterwards.
    """

    def __init__(
        self,
        request: TuneRequest,
        model: nn.Module,
        task: Task,
        split: Split,
        *,
        smoothing: float,
        caches: bool,
        device: torch.device,
        seed: int,
    ) -> None:
        self.request, self.task, self.model = request, task, model
        self.smoothing = request.label_smoothing if request.label_smoothing is not None else smoothing
        self.exits = len(exits_of(model)) if isinstance(model, GraphModule) else 0
        self.learns = self._learns()
        self.mixing = Mixing(request.mixup, request.cutout, derived_generator(seed, "mixing"))
        self.network: nn.Module = model
        self.modules = nn.ModuleDict()
        self._pairs: list[tuple[str, str]] = []
        self._teacher: Teacher | None = None
        if self.learns:
            self._teach(split, caches and not self.mixing, device, seed)
        penalties = (*request.penalties, *([GroupLasso(request.sparsity)] if request.sparsity else ()))
        self.penalties = [penalty.term(self._graph("penalties")) for penalty in penalties]
        for place, term in enumerate(self.penalties):
            if isinstance(term, nn.Module):
                self.modules[f"penalty{place}"] = term

    def __call__(self, network: nn.Module, batch: Batch, index: Tensor | None = None) -> Tensor:
        """The loss of ``network``, which is :attr:`network` or a wrapper of it, on a batch; shape ().

        ``index``: the places of the samples in the training data, on the CPU, where these are in memory.
        """
        inputs, targets, other, share = self.mixing(batch)
        output = network(*inputs)
        values: tuple[Tensor, ...] = ()
        if isinstance(self.network, Tapped):
            output, values = output
        outputs = outputs_of(output, self.exits, self.task)
        total = self._hard(outputs, targets, other, share)
        if self._teacher is not None:
            taught, wanted = self._teacher(inputs, index)
            total = total + self._taught(outputs, values, taught, wanted, targets, index)
        if self.request.exit_weight and self.exits:
            total = total + self.request.exit_weight * self_distillation(self.task, outputs, self.request.temperature)
        return torch.stack([total, *(term() for term in self.penalties)]).sum() if self.penalties else total

    def _learns(self) -> bool:
        """Whether a teacher has a part in it; raises if one is needed and there is none."""
        request, soft = self.request, self.task.soft is not None
        if request.exit_weight and not soft:
            raise self._no_soft("exit_weight")
        if request.teacher is None:
            if request.loss == "kd":
                raise TuningError("tuning with loss='kd' needs a teacher; give TuneRequest(teacher=...).")
            if self._compares():
                raise TuningError(
                    "tuning: contrast_weight, hint_weight and attention_weight compare the network with a teacher, and "
                    "there is none; give TuneRequest(teacher=...)."
                )
            return False
        if request.loss == "kd" and request.soft_weight and not soft:
            raise self._no_soft("loss='kd'")
        return self._compares() or (request.loss != "task" and soft)

    def _no_soft(self, what: str) -> TuningError:
        return TuningError(
            f"tuning: {what} needs a soft loss, and the task {self.task.name!r} has none; use loss='task', or give the "
            "task one."
        )

    def _compares(self) -> bool:
        return max(self.request.contrast_weight, self.request.hint_weight, self.request.attention_weight) > 0

    @property
    def _distils(self) -> bool:
        return self.learns and self.request.loss != "task" and self.task.soft is not None

    def _graph(self, what: str) -> GraphModule:
        if not isinstance(self.model, GraphModule):
            raise TuningError(f"tuning: {what} need a network in train form, as chainfx.capture gives it.")
        return self.model

    def _teach(self, split: Split, caches: bool, device: torch.device, seed: int) -> None:
        """Place the teacher, and the modules that compare it with the network."""
        request, teacher = self.request, copy.deepcopy(self.request.teacher)
        assert teacher is not None
        teacher = teacher.to(device)
        own: list[str] = []
        taught: list[str] = []
        example = _example(split, device) if self._compares() else ()
        if request.hint_weight or request.attention_weight:
            self._pairs = hinted(request.layers, self._graph("hints and attention maps"), teacher, example)
            own, taught = [pair[0] for pair in self._pairs], [pair[1] for pair in self._pairs]
        if request.contrast_weight:
            own.append(penultimate(self._graph("contrasts")))
            taught.append(penultimate(teacher))
        if own:
            self.network, tapped = Tapped(self._graph("values"), own), Tapped(teacher, taught)
            mine, theirs = widths(self.network, example), widths(tapped, example)
            count = len(self._pairs)
            if request.hint_weight:
                self.modules["hints"] = Hints(mine[:count], theirs[:count], device)
            if request.contrast_weight:
                sizes = [shapes[-1][1:].numel() for shapes in (mine, theirs)]
                self.modules["contrast"] = _contrast(sizes, split, request.negatives, device, seed)
            self._teacher = Teacher(tapped, len(split), caches=False, tapped=True)
        else:
            self._teacher = Teacher(teacher, len(split), caches=caches, tapped=False)

    def _hard(self, outputs: tuple[Any, ...], targets: Any, other: Any, share: float) -> Tensor:
        """The loss of the task, of mixed samples for both targets."""
        weight = self.request.hard_weight if self._distils else 1.0
        loss = task_sum(self.task, outputs, targets, self.smoothing)
        if other is not None:
            loss = share * loss + (1 - share) * task_sum(self.task, outputs, other, self.smoothing)
        return weight * loss

    def _taught(
        self,
        outputs: tuple[Any, ...],
        values: tuple[Tensor, ...],
        answer: Any,
        wanted: tuple[Tensor, ...],
        targets: Any,
        index: Tensor | None,
    ) -> Tensor:
        """The terms that compare the network with its teacher."""
        request, found = self.request, []
        if self._distils:
            taught = outputs_of(answer, len(outputs) - 1, self.task)
            self._check_teacher(outputs[-1], taught[-1])
            exits = request.distil_exits or request.loss == "recover"
            soft = soft_sum(self.task, outputs, taught, request.temperature, exits=exits)
            found.append(request.soft_weight * soft)
        count = len(self._pairs)
        if request.hint_weight:
            found.append(request.hint_weight * self.modules["hints"](values[:count], wanted[:count]))
        if request.attention_weight:
            found.append(request.attention_weight * attention_loss(values[:count], wanted[:count]))
        if request.contrast_weight:
            if index is None:
                raise TuningError(
                    "tuning: contrast_weight needs to know which samples a batch has; give loss(network, batch, index)."
                )
            here = index.to(values[-1].device)
            found.append(request.contrast_weight * self.modules["contrast"](values[-1], wanted[-1], here))
        return torch.stack(found).sum()

    def _check_teacher(self, own: Any, taught: Any) -> None:
        shapes = [tuple(item.shape) if isinstance(item, Tensor) else type(item).__name__ for item in (own, taught)]
        if shapes[0] != shapes[1]:
            raise TuningError(
                f"tuning: the teacher answers a batch with {shapes[1]}, the network with {shapes[0]}; give a teacher "
                "with the same outputs, or use loss='task'."
            )


def _example(split: Split, device: torch.device) -> tuple[Tensor, ...]:
    """The inputs of two samples; no random number of training is drawn."""
    with torch.random.fork_rng(devices=[]):  # a DataLoader draws its seed from the global generator
        inputs, _ = next(iter(split.batches(2)))
    return tuple(tensor[:2].to(device) for tensor in inputs)


def _contrast(sizes: Sequence[int], split: Split, negatives: int, device: torch.device, seed: int) -> nn.Module:
    if not isinstance(split, InMemory) or split.targets.dim() != 1 or split.targets.is_floating_point():
        raise TuningError(
            "tuning: contrast_weight keeps a memory of every training sample by its class; give data in memory with "
            "one class a sample, or leave it out."
        )
    own, taught = sizes
    return Contrast(own, taught, split.targets.to(device), negatives, derived_generator(seed, "contrast"))
