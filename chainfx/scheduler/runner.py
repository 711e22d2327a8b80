"""Running a plan: one stage after the other, each verified, measured, recorded and kept."""

import copy
import json
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_map_only

from chainfx.bitops import count
from chainfx.errors import DropWarning, PassError
from chainfx.ir.graph import Answer, device_of, facts_of, ordinary, verify
from chainfx.passes import (
    Epoch,
    Execution,
    Measurement,
    Pass,
    PassContext,
    PassResult,
    Trainer,
    TuneRequest,
    Tunings,
    all_found,
    metric_of,
    processes_of,
    task_of,
    trainer_on,
)
from chainfx.scheduler import remarks
from chainfx.scheduler.fact_checks import check_applied, check_chain, check_tuned
from chainfx.scheduler.keys import StageKey, Surroundings
from chainfx.scheduler.measuring import Measured, measured
from chainfx.scheduler.needs import unserved_needs
from chainfx.scheduler.planning import Plan
from chainfx.scheduler.records import Costs, Stage, StageRecord
from chainfx.scheduler.store import StageStore

__all__ = ["Listener", "StageRunner", "run"]


class Listener:
    """What a run tells while it goes; the base class says nothing."""

    def begin(self, index: int, total: int, label: str) -> None:
        """Stage ``index`` (from 1) of ``total`` begins."""

    def round(self, index: int, total: int) -> None:
        """Round ``index`` (from 1) of ``total`` of the current stage begins; not told of passes with one round."""

    def epoch(self, epoch: Epoch) -> None:
        """The trainer finished an epoch of the current stage, or a part of one; see ``Epoch.share``."""

    def end(self, stage: Stage) -> None:
        """A stage is finished and kept."""


def run(
    graph_module: GraphModule,
    plan: Plan,
    *,
    example_inputs: tuple[Tensor, ...],
    trainer: Trainer | None = None,
    calibration: Sequence[tuple[Tensor, ...]] | None = None,
    store: StageStore | None = None,
    seed: int = 0,
    listener: Listener | None = None,
    start: Stage | None = None,
    warn_drop: float | None = 0.05,
    tunings: Tunings | None = None,
    execution: Execution | None = None,
) -> Iterator[Stage]:
    """Run the passes of a plan, yielding each stage as it is finished, the captured network first.

    A stage's graph is never changed afterwards. With a ``store``, a stage that was finished before under the same
    :class:`~chainfx.scheduler.StageKey` is read instead of computed. With ``start``, a stage of this network that was
    finished elsewhere, it follows the captured network and the passes go on from it. A pass whose result is no cheaper
    than the network before is taken back if it :attr:`~chainfx.passes.Pass.must_pay`, and its record says so. A stage
    whose metric is worse than before by more than ``warn_drop``, in units of the metric, says so in its record with the
    likely causes, and a :class:`~chainfx.errors.DropWarning` does; ``None`` for never. Raises what the passes and the
    trainer raise; before anything runs, :class:`PassError` when a pass needs what is not there or would lose what
    another one made, and :class:`~chainfx.errors.ArtifactError` when the store cannot keep the network; later
    :class:`PassError` when a pass changes facts of the graph that it does not declare, and
    :class:`~chainfx.errors.TuningError` when a trainer changes any.
    """
    listener = listener or Listener()
    _check_needs(plan.passes, trainer, calibration)
    check_chain(plan.passes)
    runner = StageRunner(
        graph_module,
        example_inputs=example_inputs,
        trainer=trainer,
        calibration=calibration,
        store=store,
        seed=seed,
        listener=listener,
        tunings=tunings,
        execution=execution,
    )
    stage = runner.first()
    listener.end(stage)
    yield stage
    if start is not None:
        stage = _at_home(start, runner.context)
        verify(stage.graph_module, example_inputs)
        listener.end(stage)
        yield stage
    for index, one in enumerate(plan.passes, start=1):
        listener.begin(index, len(plan.passes), one.label)
        parent = stage.record
        stage = runner.next(stage, one)
        lost = remarks.of_loss(one, parent, stage.record, warn_drop)  # what is much is no part of the stage's key
        if lost:
            stage = replace(stage, record=replace(stage.record, remarks=(*stage.record.remarks, lost)))
        listener.end(stage)
        yield stage
        if lost:
            warnings.warn(f"{one.label}: {lost}", DropWarning, stacklevel=2)


class StageRunner:
    """Runs single stages of one captured network, for callers that choose the way through them, as a study does.

    Takes what :func:`run` takes and does what that does, stage by stage, with the same keys in the same store; but
    whether the passes of a chain go together is the caller's business. Raises
    :class:`~chainfx.errors.ArtifactError` when the store cannot keep the network.
    """

    def __init__(
        self,
        graph_module: GraphModule,
        *,
        example_inputs: tuple[Tensor, ...],
        trainer: Trainer | None = None,
        calibration: Sequence[tuple[Tensor, ...]] | None = None,
        store: StageStore | None = None,
        seed: int = 0,
        listener: Listener | None = None,
        tunings: Tunings | None = None,
        execution: Execution | None = None,
    ) -> None:
        execution = execution or Execution()
        trainer = trainer_on(trainer, execution)
        self.context = _context(graph_module, example_inputs, trainer, calibration, seed, execution)
        verify(graph_module, example_inputs)
        self.process, self.processes = processes_of(trainer)
        if store and self.process == 0:
            store.check(graph_module)
        self.surroundings = Surroundings.of(graph_module, example_inputs, trainer, calibration, seed, execution)
        self.trainer, self.store, self.listener = trainer, store, listener or Listener()
        self.tunings = tunings or Tunings()

    def first(self) -> Stage:
        """The captured network as stage 0."""
        return _first_stage(self.surroundings, self.context, self.trainer)

    def key(self, parent: str, one: Pass) -> StageKey:
        """What determines the stage that a pass makes of the stage with the fingerprint ``parent``."""
        tuning = {} if self.trainer is None else self.tunings.plain(one.info.name)
        return StageKey(parent, one.spec(), one.info.revision, self.surroundings, tuning)

    def next(self, parent: Stage, one: Pass) -> Stage:
        """The stage that a pass makes of another one: read from the store, or computed and kept there.

        The graph of ``parent`` is not changed. Raises what :func:`run` raises once it runs.
        """
        key = self.key(parent.record.fingerprint, one)
        found = self.store.find(key.fingerprint) if self.store else None
        if self.store and all_found(self.trainer, found is not None) and found is not None:
            return _at_home(found, self.context)
        stage = _next_stage(parent, one, key, self.context, self.trainer, self.listener, self.tunings)
        kept = self.store.keep(stage) if self.store and self.process == 0 else stage
        return kept if self.processes == 1 else stage  # all go on from the network that they made together


def _first_stage(surroundings: Surroundings, context: PassContext, trainer: Trainer | None) -> Stage:
    found = measured(context.reference, context, trainer)
    costs = Costs.of(found.report, measured=found.costs_known)
    record = StageRecord(
        index=0,
        name="original",
        spec={},
        label="original",
        fingerprint=surroundings.network,
        parent="",
        before=costs,
        after=costs,
        metric=found.measurement.metric,
        exit_rates=found.measurement.exit_rates,
        modified=False,
        report=found.report,
        surroundings=surroundings,
        measured_by=metric_of(trainer),
    )
    return Stage(record, context.reference)


def _at_home(stage: Stage, context: PassContext) -> Stage:
    """A stage that was read from a disk, as an own copy on the device of the captured network."""
    device = device_of(context.reference)
    return replace(stage, graph_module=copy.deepcopy(stage.graph_module).to(device), resumed=True)


def _next_stage(
    parent: Stage,
    one: Pass,
    key: StageKey,
    context: PassContext,
    trainer: Trainer | None,
    listener: Listener,
    tunings: Tunings,
) -> Stage:
    start = time.perf_counter()
    results = _results(parent, one, context, trainer, listener, tunings)
    requests = tuple(each.tune.plain() for each in results if trainer is not None and each.tune is not None)
    graph_module = results[-1].graph_module
    found = measured(graph_module, context, trainer, results[-1].answers)
    old = _strict_costs(parent, context)
    new = Costs.of(found.report.reprice("strict"), measured=found.costs_known)
    modified = any(each.modified for each in results)
    taken_back = modified and one.must_pay and not remarks.is_cheaper(one, old, new)
    if taken_back:
        graph_module = copy.deepcopy(parent.graph_module)
        found = _as_before(parent, key) or measured(graph_module, context, trainer)
    record = StageRecord(
        index=parent.record.index + 1,
        name=one.info.name,
        spec=key.spec,
        label=one.label,
        fingerprint=key.fingerprint,
        parent=key.parent,
        before=parent.record.after,
        after=Costs.of(found.report, measured=found.costs_known),
        metric=found.measurement.metric,
        exit_rates=found.measurement.exit_rates,
        modified=modified and not taken_back,
        tuned=not taken_back and bool(requests),
        seconds=time.perf_counter() - start,
        skipped=tuple(dict.fromkeys(item for each in results for item in each.skipped)),
        profile=json.loads(json.dumps({**_profile(results[:-1]), **results[-1].profile})),
        report=found.report,
        revision=key.revision,
        surroundings=key.surroundings,
        measured_by=metric_of(trainer),
        remarks=(
            *remarks.of_replaced(one, parent.graph_module, graph_module),
            *remarks.of_cost(one, old, new, modified=modified, taken_back=taken_back),
        ),
        requests=tuple(json.loads(json.dumps(requests))),
    )
    return Stage(record, graph_module)


def _results(
    parent: Stage,
    one: Pass,
    context: PassContext,
    trainer: Trainer | None,
    listener: Listener,
    tunings: Tunings,
) -> list[PassResult]:
    """Apply a pass to a copy of its parent's network, tune in every round, and finish it: what each step gave."""
    graph_module = copy.deepcopy(parent.graph_module)
    verify(graph_module, context.example_inputs)
    results: list[PassResult] = []
    for number in range(one.rounds):
        if one.rounds > 1:
            listener.round(number + 1, one.rounds)
        this_round = replace(context, round=number, entry=parent.graph_module)
        before = facts_of(graph_module)
        applied = one.apply(graph_module, this_round)
        graph_module = applied.graph_module
        verify(graph_module, context.example_inputs)
        check_applied(one, before, facts_of(graph_module))
        if trainer is not None and applied.tune is not None:
            served = tunings.served(applied.tune, one.info.name, number, context.reference, parent.graph_module)
            applied = replace(applied, tune=served)
            _tune(graph_module, served, trainer, this_round, one, listener)
        results.append(applied)
    before = facts_of(graph_module)
    finished = one.finish(graph_module, replace(context, round=one.rounds - 1, entry=parent.graph_module))
    verify(finished.graph_module, context.example_inputs)
    check_applied(one, before, facts_of(finished.graph_module))
    return [*results, finished]


def _strict_costs(stage: Stage, context: PassContext) -> Costs:
    """What a stage costs with every layer at its own width; counted again where its record has no report."""
    if stage.record.report is not None:
        return stage.record.costs_under("strict")
    rates = stage.record.exit_rates or None
    report = count(stage.graph_module, context.example_inputs, exit_rates=rates)
    return Costs.of(report.reprice("strict"), measured=not report.exits or bool(rates))


def _as_before(parent: Stage, key: StageKey) -> Measured | None:
    """What was measured of the stage before; ``None`` if that was elsewhere or by something else."""
    record = parent.record
    if record.report is None or record.surroundings != key.surroundings:
        return None
    return Measured(Measurement(record.metric, record.exit_rates), record.report)


def _profile(results: Sequence[PassResult]) -> dict[str, Any]:
    """The measured facts of a single round, or those of each round under the key ``rounds``."""
    if len(results) == 1:
        return dict(results[0].profile)
    return {"rounds": [dict(each.profile) for each in results]}


def _tune(
    graph_module: GraphModule,
    request: TuneRequest,
    trainer: Trainer,
    context: PassContext,
    one: Pass,
    listener: Listener,
) -> None:
    """Let the trainer serve the request, and hold it to leaving the graph as it was."""
    text, facts = str(graph_module.graph), facts_of(graph_module)
    again = f" {context.round}" if context.round else ""
    seed = context.rng(f"tune {one.info.name}{again}").initial_seed() % 2**31
    trainer.tune(graph_module, request, seed=seed, on_epoch=listener.epoch)
    check_tuned(one, facts, facts_of(graph_module))
    if str(graph_module.graph) != text:
        raise PassError(f"{one.info.name}: the trainer changed the graph while tuning; it may change parameters only.")


@dataclass(frozen=True)
class _Placed:
    """Batches that are read again and again, put onto the device of the network each time, for gradients too."""

    batches: Iterable[Any]
    device: torch.device

    def __iter__(self) -> Iterator[Any]:
        return (tree_map_only(Tensor, lambda tensor: ordinary(tensor.to(self.device)), batch) for batch in self.batches)


def _context(
    graph_module: GraphModule,
    example_inputs: tuple[Tensor, ...],
    trainer: Trainer | None,
    calibration: Sequence[tuple[Tensor, ...]] | None,
    seed: int,
    execution: Execution,
) -> PassContext:
    context = PassContext(
        graph_module,
        example_inputs,
        tunes=trainer is not None,
        seed=seed,
        task=task_of(trainer),
        execution=execution,
    )
    device = device_of(graph_module)
    if trainer is None:
        return replace(context, calibration=None if calibration is None else _Placed(calibration, device))
    own: Iterable[tuple[Tensor, ...]] = trainer.calibration if calibration is None else calibration

    def evaluate(candidate: GraphModule) -> float:
        return trainer.evaluate(Answer(candidate))

    validation = _Placed(trainer.validation, device)
    return replace(context, calibration=_Placed(own, device), validation=validation, evaluate=evaluate)


def _check_needs(passes: Sequence[Pass], trainer: Trainer | None, calibration: Any) -> None:
    """Say before anything runs which pass lacks what."""
    for one in passes:
        for problem in unserved_needs(one, trainer=trainer is not None, calibration=calibration is not None):
            raise PassError(f"{one.info.name}: {problem}.")
