"""A dry run: what every stage of a chain will cost, found by applying the passes and training nothing."""

import copy
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from chainfx.bitops import count
from chainfx.errors import ChainfxError
from chainfx.ir.graph import Skipped, evaluating, verify
from chainfx.linting.chain import Step
from chainfx.passes import Pass, PassContext
from chainfx.scheduler import Costs, Finding

__all__ = ["DryStage", "StagePrediction", "applied_dry", "predict"]

_BACKWARD = 3  # a training step takes about three times the arithmetic of a forward pass: backward is two
_TIMES = 3


@dataclass(frozen=True, slots=True)
class StagePrediction:
    """What a stage will cost: ``position`` in the chain as written (0 is the original), its label, and its costs.

    ``seconds``: about how long tuning it will take on this machine, ``None`` where it is not tuned or nobody said for
    how many samples. Of a network with exits the costs are those of a sample that never leaves early.
    """

    position: int
    label: str
    costs: Costs
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The prediction as plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class DryStage:
    """A network after a pass that was applied without training.

    The graph, whether it changed, what was left alone and why, and what the pass measured.
    """

    graph_module: GraphModule
    modified: bool
    skipped: tuple[Skipped, ...]
    profile: Mapping[str, Any]


def applied_dry(one: Pass, graph_module: GraphModule, context: PassContext) -> DryStage:
    """Apply a pass to a copy of a graph, all its rounds, and train nothing; raises what the pass raises.

    The example inputs serve as calibration data. A pass that measures accuracy is not finished: what it decides then
    (thresholds of exits) changes no shape.
    """
    current = copy.deepcopy(graph_module)
    results = []
    for number in range(one.rounds):
        results.append(one.apply(current, replace(context, round=number, entry=graph_module)))
        current = results[-1].graph_module
    if "evaluation" not in one.needs:
        results.append(one.finish(current, replace(context, round=one.rounds - 1, entry=graph_module)))
        current = results[-1].graph_module
    verify(current, context.example_inputs)
    skipped = dict.fromkeys(item for each in results for item in each.skipped)
    profile = {key: value for each in results for key, value in each.profile.items()}
    return DryStage(current, any(each.modified for each in results), tuple(skipped), profile)


def predict(
    graph_module: GraphModule, steps: Sequence[Step], inputs: tuple[Tensor, ...], *, trainer: bool, samples: int | None
) -> tuple[tuple[StagePrediction, ...], tuple[Finding, ...]]:
    """The costs after each stage, the original first, and what the dry run found.

    The costs follow from shapes and options, and where a pass decides by the weights (a global ranking, the energy of
    ranks) from the weights as they are before tuning. ``samples``: how many a tuning sees, epochs times the size of the
    training data. A stage that cannot be applied is a finding, and ends the prediction.
    """
    context = PassContext(graph_module, inputs, calibration=[inputs], tunes=trainer)
    original = _costs(graph_module, inputs)
    pace = None
    if samples is not None:
        pace = _BACKWARD * samples * _seconds_a_sample(graph_module, inputs) / max(original.macs, 1)
    stages, found, current = [StagePrediction(0, "original", original)], [], graph_module
    for step in steps:
        try:
            done = applied_dry(step.one, current, context)
        except ChainfxError as error:
            fix = "change the pass or leave it out; what follows it is not predicted"
            reason = f"{step.one.label} cannot be applied to this network: {str(error).removesuffix('.')}"
            found.append(step.finding("dry-run", "error", reason, "a dry run without training", fix))
            break
        if not done.modified:
            reason = f"{step.one.label} changes nothing in this network"
            found.append(step.finding("dry-run", "info", reason, _why(done.skipped), "leave it out"))
        current, costs = done.graph_module, _costs(done.graph_module, inputs)
        seconds = None if pace is None or not step.tuned else pace * costs.macs * step.one.rounds
        stages.append(StagePrediction(step.position, step.one.label, costs, seconds))
    return tuple(stages), tuple(found)


def _why(skipped: Iterable[Skipped]) -> str:
    reasons = sorted({item.reason for item in skipped})
    return f"a dry run without training: {reasons[0]}" if reasons else "a dry run without training"


def _costs(graph_module: GraphModule, inputs: tuple[Tensor, ...]) -> Costs:
    report = count(graph_module, inputs)
    return Costs.of(report, measured=not report.exits)


def _seconds_a_sample(graph_module: GraphModule, inputs: tuple[Tensor, ...]) -> float:
    """Median time of a forward pass for one sample of the batch."""
    times = []
    with evaluating(graph_module), torch.no_grad():
        for _ in range(_TIMES + 1):
            start = time.perf_counter()
            graph_module(*inputs)
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) / max(len(inputs[0]), 1)
