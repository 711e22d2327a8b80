"""A dry run: what every stage of a chain will cost, found by applying the passes and training nothing."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from chainfx.bitops import count
from chainfx.errors import ChainfxError
from chainfx.ir.graph import Skipped, ops, verify
from chainfx.linting.chain import Step
from chainfx.linting.network import unfilled
from chainfx.linting.network_rules import channel_counts_left
from chainfx.linting.timing import record_of, seconds_of_sample
from chainfx.passes import Pass, PassContext, TuneRequest, classification
from chainfx.scheduler import Costs, Finding, StageRecord

__all__ = ["DryStage", "StagePrediction", "applied_dry", "predict"]

_ANY_TASK = replace(classification(), criteria=ops.CRITERIA)


@dataclass(frozen=True, slots=True)
class StagePrediction:
    """What a stage will cost: ``position`` in the chain as written (0 is the original), its label, and its costs.

    ``seconds``: about how long tuning it will take, ``None`` where it is not tuned, or where there is no record of it
    and nobody said for how many samples; ``basis`` says what the number comes from. Of a network with exits the costs
    are those of a sample that never leaves early.
    """

    position: int
    label: str
    costs: Costs
    seconds: float | None = None
    basis: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The prediction as plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class DryStage:
    """A network after a pass that was applied without training.

    The graph, whether it changed, what was left alone and why, what the pass measured, and the tuning that it asked for
    last.
    """

    graph_module: GraphModule
    modified: bool
    skipped: tuple[Skipped, ...]
    profile: Mapping[str, Any]
    tune: TuneRequest | None


def applied_dry(one: Pass, graph_module: GraphModule, context: PassContext) -> DryStage:
    """Apply a pass to a copy of a graph, all its rounds, and train nothing; raises what the pass raises.

    The example inputs serve as calibration data. A pass that measures accuracy is not finished: what it decides then
    (thresholds of exits) changes no shape. What the network is for is not known, so that each confidence counts as one
    of its task.
    """
    current, context = copy.deepcopy(graph_module), replace(context, task=_ANY_TASK)
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
    asked = [each.tune for each in results if each.tune is not None]
    return DryStage(
        current, any(each.modified for each in results), tuple(skipped), profile, asked[-1] if asked else None
    )


def predict(
    graph_module: GraphModule,
    steps: Sequence[Step],
    inputs: tuple[Tensor, ...],
    *,
    trainer: bool,
    samples: int | None,
    records: Sequence[StageRecord] = (),
) -> tuple[tuple[StagePrediction, ...], tuple[Finding, ...]]:
    """The costs after each stage, the original first, and what the dry run found.

    The costs follow from shapes and options, and where a pass decides by the weights (a global ranking, the energy of
    ranks) from the weights as they are before tuning. ``samples``: how many a tuning sees, epochs times the size of the
    training data. ``records``: those of stages that were run before, whose time is taken for the same stage. A stage
    that cannot be applied is a finding, and ends the prediction.
    """
    context = PassContext(graph_module, inputs, calibration=[inputs], tunes=trainer)
    stages, found, current = [StagePrediction(0, "original", _costs(graph_module, inputs))], [], graph_module
    odd = unfilled(graph_module)
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
        seconds, basis = _time(step, done, costs, graph_module, inputs, samples, records)
        stages.append(StagePrediction(step.position, step.one.label, costs, seconds, basis))
        before, odd = odd, unfilled(current)
        new = {path: width for path, width in odd.items() if before.get(path) != width}
        if step.family == "pruning" and new:
            found.append(channel_counts_left(step, new))
    return tuple(stages), tuple(found)


def _why(skipped: Iterable[Skipped]) -> str:
    reasons = sorted({item.reason for item in skipped})
    return f"a dry run without training: {reasons[0]}" if reasons else "a dry run without training"


def _costs(graph_module: GraphModule, inputs: tuple[Tensor, ...]) -> Costs:
    report = count(graph_module, inputs)
    return Costs.of(report, measured=not report.exits)


def _time(
    step: Step,
    done: DryStage,
    costs: Costs,
    original: GraphModule,
    inputs: tuple[Tensor, ...],
    samples: int | None,
    records: Sequence[StageRecord],
) -> tuple[float | None, str]:
    """How long tuning a stage will take, in seconds, and by what that is known.

    A stage that learns from a teacher and names none learns from the original network.
    """
    if not step.tuned or done.tune is None:
        return None, ""
    record = record_of(records, step.one.label, costs)
    if record is not None:
        return record.seconds, "the record of the stage, which was run before"
    if samples is None:
        return None, ""
    request = done.tune
    if request.learns_from_teacher and request.teacher is None:
        request = replace(request, teacher=original)
    each = seconds_of_sample(done.graph_module, inputs, request)
    return each * samples * step.one.rounds, f"a training step of batch {len(inputs[0])}, timed here"
