"""Running a study: in this process or several, until it is done, its time is up, or Ctrl-C."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import torch

from chainfx.errors import ChainfxError, StudyError
from chainfx.study.design import Case, Design
from chainfx.study.job import TRIES, Job, is_over, one_thread
from chainfx.study.on_ray import RayCluster, run_on_ray
from chainfx.study.records import CaseRecord
from chainfx.study.store import StudyStore
from chainfx.study.subject import Subject
from chainfx.study.unit import units_of

__all__ = ["Watcher", "run_study"]


class Watcher:
    """What a running study tells; the base class says nothing."""

    def begins(self, cases: int) -> None:
        """The study begins; it has so many cases, each pass alone and every beginning of a chain among them."""

    def finished(self, record: CaseRecord) -> None:
        """A case has its record, from now or from before."""


@dataclass(frozen=True)
class _Message:
    """What a worker tells: that a case begins, is recorded, or that the study cannot go on."""

    kind: Literal["begins", "record", "error"]
    case: Case | None = None
    record: CaseRecord | None = None
    text: str = ""


def run_study(
    design: Design,
    folder: str | Path,
    *,
    subject: Subject | None = None,
    workers: int = 1,
    minutes: float | None = None,
    watcher: Watcher | None = None,
    ray: RayCluster | None = None,
) -> StudyStore:
    """Run what is missing of a study in a folder, and give back its store, whole or not.

    Parameters:
        design: what to run. A folder that holds the same study, perhaps with other seeds, goes on after its records.
        subject: network and data in memory, instead of those that the design names.
        workers: processes; with more than one, each seed and training is a job of its own, and a script that calls this
            needs ``if __name__ == "__main__":``. Every process computes on one thread, so that results are the same.
        minutes: stop after the stage in flight when so much time has passed.
        watcher: is told what happens.
        ray: a Ray cluster to run on instead; each case is a task. One that is made for the study has ``workers`` CPUs.

    A case that fails is recorded with the reason and the rest goes on, also when it ends its worker process; killed at
    any moment, the study loses at most the stage in flight of each worker. Raises
    :class:`~chainfx.errors.StudyError` if the folder holds another study or takes no records, and what opening network
    and data raises.
    """
    watcher = watcher or Watcher()
    subject = subject or Subject.of(design)
    store = StudyStore.create(folder, design, subject.fingerprint, subject.ground)
    ends = None if minutes is None else time.monotonic() + 60 * minutes
    units = units_of(design)
    watcher.begins(sum(map(len, units)))
    job = Job(design, subject, store.folder)
    if ray is not None:
        for record in run_on_ray(design.all_cases(), job, ends, ray, workers):
            watcher.finished(record)
        return store
    run = _run_here if workers <= 1 else _run_in_processes
    run(units, job, ends, workers, watcher)
    return store


def _run_here(units: Sequence[tuple[Case, ...]], job: Job, ends: float | None, workers: int, watcher: Watcher) -> None:
    with one_thread():
        for cases in units:
            if job.is_over(ends):
                return
            for record in job.unit(cases).run():
                watcher.finished(record)
                if job.is_over(ends):
                    return


@dataclass
class _Worker:
    """A process at work on the cases of a unit, how often that was tried, and the case in flight."""

    process: BaseProcess
    messages: Connection
    cases: tuple[Case, ...]
    in_flight: Case | None = None


def _run_in_processes(
    units: Sequence[tuple[Case, ...]], job: Job, ends: float | None, workers: int, watcher: Watcher
) -> None:
    waiting, deaths = list(units), dict[str, int]()
    at_work: dict[Connection, _Worker] = {}
    try:
        while (waiting and not is_over(ends)) or at_work:
            while waiting and len(at_work) < workers and not is_over(ends):
                worker = _started(waiting.pop(0), job, ends)
                at_work[worker.messages] = worker
            for connection in wait(list(at_work)):
                worker = at_work[connection]  # type: ignore[index]  # wait gives back what it was given
                if not _heard(worker, watcher):
                    del at_work[worker.messages]
                    waiting = _after_end(worker, deaths, job, watcher) + waiting
    finally:
        for worker in at_work.values():
            worker.process.terminate()
            worker.process.join()


def _started(cases: tuple[Case, ...], job: Job, ends: float | None) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    left = None if ends is None else ends - time.monotonic()
    process = context.Process(target=_work, args=(cases, job, left, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, cases)


def _heard(worker: _Worker, watcher: Watcher) -> bool:
    """Take in the next message of a worker; false if there will be none."""
    try:
        message: _Message = worker.messages.recv()
    except (EOFError, OSError):  # it may have died in the middle of one
        return False
    if message.kind == "error":
        raise StudyError(message.text)
    worker.in_flight = message.case
    if message.record is not None:
        watcher.finished(message.record)
    return True


def _after_end(worker: _Worker, deaths: dict[str, int], job: Job, watcher: Watcher) -> list[tuple[Case, ...]]:
    """The cases to be given to a worker again, because theirs died; the second time the case in flight has failed."""
    worker.process.join()
    case, code = worker.in_flight, worker.process.exitcode
    if code == 0:
        return []
    hit = worker.cases[0].hash if case is None else case.hash
    deaths[hit] = deaths.get(hit, 0) + 1
    if deaths[hit] >= TRIES:
        if case is None:
            raise StudyError(f"a worker process ended with code {code} before it began; run with workers=1 to see why.")
        with one_thread():
            unit = job.unit(worker.cases)
        record = unit.failure(case, f"its worker process died {TRIES} times, the last time with code {code}.")
        unit.store.keep(record)
        watcher.finished(record)
    return [worker.cases]


def _work(cases: tuple[Case, ...], job: Job, left: float | None, messages: Connection) -> None:
    """What a worker process does: run a unit and tell of it."""
    ends = None if left is None else time.monotonic() + left
    torch.set_num_threads(1)
    try:
        begins = _teller(messages)
        for record in job.unit(cases).run(begins):
            messages.send(_Message("record", record=record))
            if is_over(ends):
                return
    except ChainfxError as error:
        messages.send(_Message("error", text=str(error)))
    except KeyboardInterrupt:  # of the whole group of processes: the parent says it
        return


def _teller(messages: Connection) -> Callable[[Case], None]:
    return lambda case: messages.send(_Message("begins", case=case))
