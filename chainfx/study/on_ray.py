"""Running a study on a Ray cluster: this process owns the graph of cases, and each case is a task."""

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from chainfx.errors import ChainfxError, StudyError
from chainfx.study.case_graph import CaseGraph
from chainfx.study.design import Case
from chainfx.study.job import TRIES, Job, is_over, one_thread
from chainfx.study.records import CaseRecord

__all__ = ["RayCluster", "run_on_ray"]

_WAIT = 1.0  # seconds after which the clock is looked at again


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A Ray cluster to run a study on, and what one case asks of it (``pip install chainfx[ray]``).

    ``address``: as ``ray.init`` takes it, such as ``"auto"``. ``None`` is the cluster that this process is connected
    to, or else one of its own on this machine, which is stopped at the end. ``num_cpus`` and ``num_gpus``: what one
    case takes, which may be a share of one; ``resources``: others by name. All machines need chainfx, and the folder of
    the study under the same path.
    """

    address: str | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    resources: Mapping[str, float] | None = None


def run_on_ray(
    cases: Iterable[Case], job: Job, ends: float | None, cluster: RayCluster, workers: int
) -> Iterator[CaseRecord]:
    """The records of all cases as they are finished; no more cases are begun when the time is over.

    A case whose worker dies is given to another one, and has failed when that happened twice. ``workers``: processors
    of a cluster that is made for the study. Raises :class:`~chainfx.errors.StudyError` without Ray, or where the study
    cannot go on.
    """
    ray = _ray()
    mine = not ray.is_initialized()
    if mine:
        _begin(ray, cluster.address, workers)
    try:
        yield from _run(ray, CaseGraph(cases), job, ends, cluster)
    finally:
        if mine:
            ray.shutdown()


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise StudyError("to run a study on Ray, Ray has to be there; pip install chainfx[ray].") from error


def _begin(ray: Any, address: str | None, workers: int) -> None:
    """Connect to a cluster, or make one on this machine that listens to this machine alone."""
    try:
        if address is not None:
            ray.init(address=address, log_to_driver=False)
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of every use
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise StudyError(f"no Ray cluster at {address or 'this machine'}: {str(error).splitlines()[0]}") from error


def _run(ray: Any, graph: CaseGraph, job: Job, ends: float | None, cluster: RayCluster) -> Iterator[CaseRecord]:
    asked = {name: value for name, value in asdict(cluster).items() if name != "address" and value}
    task = ray.remote(max_retries=0, **asked)(_work)
    given, deaths = ray.put(job), dict[Case, int]()
    running: dict[Any, Case] = {}
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))  # so that no worker waits for this process
    while True:
        while len(running) < most and not is_over(ends) and (case := graph.take()) is not None:
            running[task.remote(given, case)] = case
        if not running:
            return
        done, _ = ray.wait(list(running), timeout=_WAIT)
        for reference in done:
            case = running.pop(reference)
            try:
                record = _taken(ray.get(reference))
            except ray.exceptions.RayError as error:
                deaths[case] = deaths.get(case, 0) + 1
                if deaths[case] < TRIES:
                    graph.give_back(case)
                    continue
                record = _failed(case, job, error)
            graph.finish(case)
            yield record


def _taken(answer: CaseRecord | str) -> CaseRecord:
    if isinstance(answer, str):
        raise StudyError(answer)
    return answer


def _failed(case: Case, job: Job, error: Exception) -> CaseRecord:
    """The record of a case whose worker died every time; without the original there is none."""
    why = (str(error).splitlines() or [""])[0].rstrip(".")
    if not case.passes:
        raise StudyError(f"the workers on Ray ended {TRIES} times before they began ({why}); run with workers=1.")
    with one_thread():
        unit = job.unit((case,))
    record = unit.failure(case, f"its worker on Ray died {TRIES} times ({type(error).__name__}: {why}).")
    unit.store.keep(record)
    return record


def _work(job: Job, case: Case) -> CaseRecord | str:
    """What a task does: make the record of a case, or say why the study cannot go on."""
    torch.set_num_threads(1)
    try:
        return next(iter(job.unit((case,)).run()))
    except ChainfxError as error:
        return str(error)
