"""Running the cases of one seed that can share stages, one after the other, each recorded as it is finished."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import groupby

import torch

from chainfx.errors import ChainfxError, StudyError
from chainfx.ir.capture import capture
from chainfx.ir.graph import content_hash, lacks_memory
from chainfx.scheduler import Stage, StageRunner, machine_kind
from chainfx.study.design import Case, Design
from chainfx.study.measuring import Bench
from chainfx.study.points import CONVENTIONS, points_of
from chainfx.study.records import CaseRecord, Origin
from chainfx.study.store import StudyStore
from chainfx.study.subject import Subject
from chainfx.study.tuning import StudyTrainer
from chainfx.training import Batches
from chainfx.version import __version__

__all__ = ["Unit", "units_of"]

_SALT = 1_000_003  # between the seeds of one salt and those of the next


def units_of(design: Design) -> list[tuple[Case, ...]]:
    """The cases of a design in groups that share stages, seed after seed; within a group beginnings come first."""
    return [
        tuple(sorted(group, key=lambda case: case.steps))
        for seed, of_seed in groupby(design.all_cases(), key=lambda case: case.seed)
        for group in _by_unit(of_seed)
    ]


def _by_unit(cases: Iterable[Case]) -> list[list[Case]]:
    found: dict[object, list[Case]] = {}
    for case in cases:
        found.setdefault(case.unit, []).append(case)
    return list(found.values())


class Unit:
    """The cases of one seed, salt, training and number of epochs; they share the original network and stages.

    A stage is computed when a case without a record needs it, and not if the store has it. A case that fails is
    recorded with the reason, and so is every case that goes on from it.
    """

    def __init__(self, cases: tuple[Case, ...], design: Design, subject: Subject, store: StudyStore) -> None:
        self.cases, self.design, self.subject, self.store = cases, design, subject, store
        self._stages: dict[tuple[str, ...], Stage] = {}
        first, tuning = cases[0], design.tuning
        example_inputs = subject.example_inputs
        self._original = _original(design, subject, store, first.seed)
        self._trainer = StudyTrainer(
            subject.trainer(tuning, first.epochs),
            first.training,
            tuning.learning_rate * tuning.equal_scale,
            self._original.graph_module,
        )
        self._runner = StageRunner(
            self._original.graph_module,
            example_inputs=example_inputs,
            trainer=self._trainer,
            store=store.stages,
            seed=first.seed + _SALT * first.salt,
        )
        around = self._runner.surroundings
        self.origin = Origin(around.network, machine_kind(around.device), around.chainfx, around.torch)

    def run(self, begins: Callable[[Case], None] = lambda case: None) -> Iterator[CaseRecord]:
        """The records of all cases; those that are missing are made when they are asked for.

        Several processes that train together make them together, and the first of them keeps them.
        """
        first = self._trainer.processes[0] == 0
        for case in self.cases:
            found = self.store.find(case, self.origin)
            if not self._trainer.agreed(found is not None) or found is None:
                begins(case)
                found = self._made(case)
                if first:
                    self.store.keep(found)
            yield found

    def failure(self, case: Case, reason: str) -> CaseRecord:
        """The record of a case that failed."""
        return CaseRecord.of(case, self.origin, stage=None, points=(), storage_bits=0, seconds=0.0, failed=reason)

    def _made(self, case: Case) -> CaseRecord:
        for length in range(1, len(case.passes)):
            before = self.store.find(case.beginning(length), self.origin)
            if before is not None and before.failed is not None:
                return self.failure(case, before.failed)
        hopeless = self._given_up(case)
        if hopeless is not None:
            return hopeless
        try:
            stage = self._stage(case)
            return self._measured(case, stage)
        except (StudyError, KeyboardInterrupt):
            raise
        except ChainfxError as error:
            return self.failure(case, f"{type(error).__name__}: {error}")
        except (RuntimeError, ValueError, ArithmeticError, LookupError, TypeError, MemoryError) as error:
            kind = "out of memory" if lacks_memory(error) else type(error).__name__
            return self.failure(case, f"{kind}: {(str(error).splitlines() or [''])[0]}")

    def _given_up(self, case: Case) -> CaseRecord | None:
        """The record of a case that goes on from one which lost more than the design has hope for."""
        limit = self.design.hopeless
        if limit is None or not case.passes:
            return None
        original, before = (self.store.find(case.beginning(n), self.origin) for n in (0, len(case.passes) - 1))
        if original is None or before is None or not before.points:
            return None
        if any(original.points[0].accuracy - point.accuracy <= limit for point in before.points):
            return None
        same = {"stage": before.stage, "points": before.points, "storage_bits": before.storage_bits}
        return CaseRecord.of(case, self.origin, seconds=0.0, given_up=True, **same)

    def _stage(self, case: Case) -> Stage:
        """The stage of a case, by way of those before it; of the last path all are remembered."""
        path = case.steps
        self._stages = {known: stage for known, stage in self._stages.items() if path[: len(known)] == known}
        stage = self._original
        for length, one in enumerate(case.passes, start=1):
            if path[:length] not in self._stages:
                self._stages[path[:length]] = self._runner.next(stage, one)
            stage = self._stages[path[:length]]
        return stage

    def _measured(self, case: Case, stage: Stage) -> CaseRecord:
        if case.passes and not stage.record.modified and not case.passes[-1].info.exact:
            return self.failure(case, f"{stage.record.label} left the network as it was.")
        size = self.design.tuning.batch_size
        judging, testing = self.subject.judging(size), Batches(self.subject.data.test, size)
        conventions = dict.fromkeys((self.design.convention, *CONVENTIONS))
        return CaseRecord.of(
            case,
            self.origin,
            stage=stage.record.fingerprint,
            points=points_of(
                stage, judging, testing, self.design.thresholds, conventions, self.subject.data.purpose, self._bench
            ),
            storage_bits=stage.record.after.storage_bits,
            seconds=stage.record.seconds,
            trained="; ".join(dict.fromkeys(map(self._trainer.trained, stage.record.requests))),
        )

    @cached_property
    def _bench(self) -> Bench | None:
        """What times networks, where the design asks for it."""
        if not self.design.measured:
            return None
        samples, _ = next(iter(self.subject.judging(256)))
        return Bench(self._original, self.subject.example_inputs, samples)


def _original(design: Design, subject: Subject, store: StudyStore, seed: int) -> Stage:
    """The trained original of a seed, captured: from the store, or trained and kept there."""
    tuning, inputs = design.tuning, subject.example_inputs
    trainer = subject.trainer(tuning, tuning.original_epochs or tuning.epochs)
    key = content_hash("original", subject.fingerprint, trainer.fingerprint, seed, __version__, str(torch.__version__))
    found = store.stages.find(key)
    if trainer.agreed(found is not None) and found is not None:
        return found
    graph_module = capture(subject.original(tuning, seed), inputs)
    first = StageRunner(graph_module, example_inputs=inputs, trainer=trainer, seed=seed).first()
    named = replace(first, record=replace(first.record, fingerprint=key))
    kept = store.stages.keep(named) if trainer.processes[0] == 0 else named
    found = store.stages.find(key)  # as every later process will see it
    return found if trainer.agreed(found is not None) and found is not None else kept
