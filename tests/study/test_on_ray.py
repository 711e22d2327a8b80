"""A study on a Ray cluster of two workers on this machine, one of which is killed; and what is said without Ray."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from chainfx.errors import StudyError
from chainfx.study import RayCluster, Subject, Watcher, run_study
from chainfx.study.job import Job
from chainfx.study.on_ray import _failed, _work
from tests.study.designs import TINY, tiny
from tests.study.test_running import untimed


def parents(process):
    """The numbers of a process and of all that it came from."""
    found = [process]
    while found[-1] > 1:
        try:
            status = Path(f"/proc/{found[-1]}/status").read_text()
        except OSError:
            return found
        found.append(int(next(line for line in status.splitlines() if line.startswith("PPid:")).split()[1]))
    return found


def working():
    """The workers that are at a case, of the cluster of this process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                at_work = b"ray::_work" in (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if at_work and os.getpid() in parents(int(entry.name)):
                found.append(int(entry.name))
    return found


class Killer(Watcher):
    """Kills a worker when the first case is finished."""

    def __init__(self):
        self.records, self.killed = [], None

    def finished(self, record):
        self.records.append(record)
        deadline = time.monotonic() + 30
        while self.killed is None and time.monotonic() < deadline:
            for process in working()[:1]:
                os.kill(process, signal.SIGKILL)
                self.killed = process
            time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_study_on_ray_gives_the_same_records_although_a_worker_is_killed(tmp_path):
    pytest.importorskip("ray", reason="ray is not installed")
    design = tiny(seeds=(0, 1))
    killer = Killer()
    store = run_study(design, tmp_path / "ray", workers=2, watcher=killer, ray=RayCluster())
    assert killer.killed is not None and len(killer.records) == 10
    here = run_study(design, tmp_path / "here")
    assert untimed(store) == untimed(here)


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StudyError) as caught:
        run_study(TINY, tmp_path, ray=RayCluster())
    assert str(caught.value) == "to run a study on Ray, Ray has to be there; pip install chainfx[ray]."


def test_a_task_makes_one_record_and_a_case_whose_workers_died_has_failed(tmp_path):
    job = Job(TINY, Subject.of(TINY), tmp_path)
    original, *rest = TINY.all_cases()
    assert _work(job, original).passes == ()
    record = _failed(rest[0], job, RuntimeError("the worker died.\nmore"))
    assert record.failed == "its worker on Ray died 2 times (RuntimeError: the worker died)."
    assert job.store.find(rest[0], record.origin) == record
    with pytest.raises(StudyError) as caught:
        _failed(original, job, RuntimeError("gone"))
    assert str(caught.value) == "the workers on Ray ended 2 times before they began (gone); run with workers=1."
