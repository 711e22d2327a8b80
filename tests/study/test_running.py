import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import chainfx.study.running
import chainfx.study.unit
from chainfx import zoo
from chainfx.errors import PassError, StudyError, TuningError
from chainfx.passes import OptimizeGraph, PruneChannels, Quantize
from chainfx.study import StudyStore, Subject, Watcher, analyse, run_study, status_of
from chainfx.study import store as store_module
from chainfx.study.job import Job
from chainfx.study.running import _Worker
from chainfx.training import Trainer, digits, from_loaders
from tests.study.designs import PRUNE, QUANTIZE, TINY, tiny


class Seen(Watcher):
    def __init__(self):
        self.cases, self.records = 0, []

    def begins(self, cases):
        self.cases = cases

    def finished(self, record):
        self.records.append(record)


@pytest.fixture(scope="module")
def subject():
    return Subject.of(TINY)


@pytest.fixture(scope="module")
def whole(subject, tmp_path_factory):
    """A finished study that tests read and do not change."""
    return run_study(TINY, tmp_path_factory.mktemp("whole"), subject=subject)


def untimed(store):
    return [dataclasses.replace(record, seconds=0.0) for record in store.records()]


def test_every_beginning_of_every_arm_has_a_record_with_its_points(whole):
    records = {" ".join(record.passes): record for record in whole.records()}
    p, q = PRUNE, QUANTIZE
    assert set(records) == {"", p, q, f"{p} {q}", f"{q} {p}"}
    original, both = records[""], records[f"{p} {q}"]
    (before,), (after,) = original.points, both.points
    assert before.bitops["mac_bw_ba"] > 20 * after.bitops["mac_bw_ba"] and after.threshold is None
    assert original.storage_bits > both.storage_bits and both.failed is None
    assert 0 < after.accuracy <= 1 and 0 < after.test <= 1
    stages = {stage.fingerprint for stage in whole.stages.records()}
    assert {record.stage for record in records.values()} == stages
    assert [path.name for path in whole.folder.iterdir() if path.name.startswith(".")] == []


def test_nothing_is_computed_twice(whole, subject, monkeypatch):
    monkeypatch.setattr(Trainer, "tune", None)
    monkeypatch.setattr(Trainer, "fit", None)
    seen = Seen()
    run_study(TINY, whole.folder, subject=subject, watcher=seen)
    assert seen.cases == 5 and sorted(record.name for record in seen.records) == sorted(
        record.name for record in whole.records()
    )


def test_a_study_without_its_networks_is_still_whole(whole, subject, tmp_path, monkeypatch):
    store = StudyStore.create(tmp_path, TINY, subject.fingerprint)
    assert store.merge(whole) == 5 and store.merge(whole) == 0
    assert len(store.stages.records()) == 5
    store.drop_networks()
    assert status_of(store).recorded == 5 and not (tmp_path / "stages").exists()
    monkeypatch.setattr(Trainer, "tune", None)
    assert len(list(run_study(TINY, tmp_path, subject=subject).records())) == 5


def test_a_study_goes_on_where_time_was_up(subject, tmp_path, whole):
    first = run_study(TINY, tmp_path, subject=subject, minutes=0.0)
    assert status_of(first).recorded == 0
    moments = iter([False, False, True])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "is_over", lambda self, ends: next(moments))
        run_study(TINY, tmp_path, subject=subject)
    assert status_of(first).recorded == 2
    assert untimed(run_study(TINY, tmp_path, subject=subject)) == untimed(whole)


def test_ctrl_c_keeps_what_is_finished(subject, tmp_path, whole):
    class Interrupts(Watcher):
        def finished(self, record):
            if len(record.passes) == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(TINY, tmp_path, subject=subject, watcher=Interrupts())
    assert status_of(StudyStore.open(tmp_path)).recorded == 2
    assert untimed(run_study(TINY, tmp_path, subject=subject)) == untimed(whole)


FAILURES = {
    "an error of chainfx": (
        PassError("quantize: no."),
        "PassError: quantize: no.",
    ),
    "a loss that is not finite": (TuningError("the loss is nan."), "TuningError: the loss is nan."),
    "an error of torch": (RuntimeError("shapes differ\nat line 3"), "RuntimeError: shapes differ"),
    "memory": (torch.OutOfMemoryError("CUDA out of memory"), "out of memory: CUDA out of memory"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_case_that_fails_is_recorded_and_the_rest_goes_on(subject, tmp_path, monkeypatch, kind):
    error, reason = FAILURES[kind]

    def apply(self, graph_module, context, /):
        raise error

    monkeypatch.setattr(Quantize, "apply", apply)
    records = run_study(TINY, tmp_path, subject=subject).records()
    failed = {" ".join(record.passes): record.failed for record in records if record.failed}
    assert len(records) == 5 and set(failed.values()) == {reason} and len(failed) == 3
    assert all("quantize" in passes for passes in failed)
    result = analyse(tmp_path)
    assert result.verdicts[0].failed == 1 and result.verdicts[0].seeds == ()
    assert f"failed: {PRUNE} > {QUANTIZE} (paper): {reason}" in str(result.status)


def test_a_pass_that_changes_nothing_is_no_point(subject, tmp_path):
    design = tiny(passes={"P": (PruneChannels(0.0, round_to=1),), "Q": (Quantize(4, 4),)})
    records = run_study(design, tmp_path, subject=subject).records()
    label = design.passes["P"][0].label
    failed = {record.failed for record in records if record.passes[-1:] == (label,)}
    assert failed == {f"{label} left the network as it was."}


def test_an_exact_pass_may_find_nothing_to_do(subject, tmp_path):
    design = tiny(passes={"P": (PruneChannels(0.25, round_to=1),), "G": (OptimizeGraph(),)}, orders="ablation")
    records = {record.steps: record for record in run_study(design, tmp_path, subject=subject).records()}
    assert {record.failed for record in records.values()} == {None}
    assert records["P:0", "G:0"].points == records["P:0",].points


def test_chains_without_hope_are_given_up_where_the_design_says_so(subject, tmp_path, monkeypatch):
    measured = chainfx.study.unit.points_of

    def ruined(stage, *rest):
        """Quantization loses everything."""
        found = measured(stage, *rest)
        lost = stage.record.name == "quantize"
        return tuple(dataclasses.replace(point, accuracy=-1.0) for point in found) if lost else found

    monkeypatch.setattr(chainfx.study.unit, "points_of", ruined)
    store = run_study(tiny(hopeless=0.5), tmp_path, subject=subject)
    records = {" ".join(record.passes): record for record in store.records()}
    given_up, before = records[f"{QUANTIZE} {PRUNE}"], records[QUANTIZE]
    assert [name for name, record in records.items() if record.given_up] == [f"{QUANTIZE} {PRUNE}"]
    assert (given_up.stage, given_up.points, given_up.seconds) == (before.stage, before.points, 0.0)
    assert len(store.stages.records()) == 4 and given_up.trained == ""
    assert before.trained == "all parameters, by the loss of the task, at a rate of 0.005, for 1 epochs"
    line = "chains that lost more than 50.0% are not trained further"
    assert line in str(store.design).splitlines() and line not in str(tiny())


PROCESSES = """
import json, os, sys
from pathlib import Path
import torch
import chainfx
from chainfx.study import StudyStore, Subject, run_study
from chainfx.training import Trainer
from tests.study.designs import tiny

folder, kept, keep = Path(sys.argv[1]), [], StudyStore.keep
StudyStore.keep = lambda self, record: kept.append(record.name) or keep(self, record)
design = tiny()
subject = Subject.of(design)
subject.trainer(design.tuning, 1).on(chainfx.passes.Execution())  # accelerate makes the group
rank = torch.distributed.get_rank()
run_study(design, folder / "store", subject=subject, minutes=0.0)
stopped = len(kept)
run_study(design, folder / "store", subject=subject, minutes=10.0)
(folder / str(rank)).write_text(json.dumps([stopped, len(kept)]))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_every_stage_together(subject, tmp_path):
    script, root = tmp_path / "study.py", Path(__file__).parents[2]
    script.write_text(PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "1"}
    ended = subprocess.run(launch, check=False, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert [json.loads((tmp_path / name).read_text()) for name in "01"] == [[0, 5], [0, 0]]
    store = StudyStore.open(tmp_path / "store")
    assert all(record.failed is None and len(record.points) == 1 for record in store.records())
    assert len(store.records()) == len(store.stages.records()) == 5


def test_control_runs_the_same_arm_with_other_random_numbers(subject, tmp_path):
    records = run_study(tiny(orders="control"), tmp_path, subject=subject).records()
    stages = {record.salt: record.stage for record in records if len(record.passes) == 2}
    assert set(stages) == {0, 1} and stages[0] != stages[1]
    assert len({record.stage for record in records if not record.passes}) == 1  # the original is the same


def test_more_seeds_are_the_same_study_and_other_designs_are_not(whole, subject, tmp_path):
    assert StudyStore.create(whole.folder, TINY, subject.fingerprint).design == TINY
    store = StudyStore.create(tmp_path, TINY, subject.fingerprint)
    assert StudyStore.create(tmp_path, tiny(seeds=(1, 2)), subject.fingerprint).design.seeds == (0, 1, 2)
    assert StudyStore.open(tmp_path).design.seeds == (0, 1, 2)
    with pytest.raises(StudyError) as caught:
        StudyStore.create(tmp_path, tiny(margin=0.2, reference=0.2), subject.fingerprint)
    assert str(caught.value) == (
        f"{tmp_path} holds a study of another design, which differs in reference, margin; give another folder."
    )
    with pytest.raises(StudyError) as caught:
        store.merge(StudyStore(whole.folder, TINY, "other"))
    assert str(caught.value) == f"{tmp_path} holds a study of another network or other data; give another folder."
    with pytest.raises(StudyError, match=r"holds no study that can be read; give the folder of 'study run'\.$"):
        StudyStore.open(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match=r"cannot be made a folder: Not a directory; give another\.$"):
        StudyStore.create(tmp_path / "file" / "store", TINY, "x")


def test_a_full_disk_is_one_clear_error(subject, tmp_path, monkeypatch):
    def full(path, body):
        path.write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    StudyStore.create(tmp_path, TINY, subject.fingerprint)
    monkeypatch.setattr(store_module, "write_document", full)
    with pytest.raises(StudyError) as caught:
        run_study(TINY, tmp_path, subject=subject)
    assert str(caught.value) == (
        f"{tmp_path}/records takes no more files: No space left on device; "
        "free some space and run the same command again."
    )
    assert not list((tmp_path / "records").iterdir()), "what was begun is taken away"


def test_a_record_that_was_cut_short_is_made_again(subject, tmp_path, whole):
    store = StudyStore.create(tmp_path, TINY, subject.fingerprint)
    store.merge(whole)
    path = min((tmp_path / "records").iterdir())
    path.write_text(path.read_text()[:100])
    assert len(store.records()) == 4
    assert untimed(run_study(TINY, tmp_path, subject=subject)) == untimed(whole)


def test_the_subject_splits_what_is_held_out_and_knows_its_resolution(subject):
    assert (len(subject.chooses.validation), len(subject.judges)) == (287, 288)
    assert subject.resolution == 1 / 288
    other = Subject(partial(zoo.resnet, (1,), 8, in_channels=1), digits(validation=0.4))
    assert other.fingerprint != subject.fingerprint
    with pytest.raises(StudyError, match="give network a 'name' and 'options', and data a 'source' and its options"):
        Subject.of(tiny(data={"path": "x"}))


def test_two_workers_make_the_same_records(subject, tmp_path):
    """One of them is killed in its first case, and its work is done again."""
    design, killed = tiny(seeds=(0, 1)), []

    class Kills(Seen):
        def begins(self, cases):
            super().begins(cases)
            started = chainfx.study.running._started

            def spied(*arguments):
                worker = started(*arguments)
                if not killed:
                    killed.append(worker.process)
                    worker.process.kill()
                return worker

            patch.setattr(chainfx.study.running, "_started", spied)

    with pytest.MonkeyPatch.context() as patch:
        seen = Kills()
        here = run_study(design, tmp_path / "workers", subject=subject, workers=2, watcher=seen)
    assert killed and len(seen.records) == seen.cases == 10
    assert untimed(here) == untimed(run_study(design, tmp_path / "alone", subject=subject))


test_two_workers_make_the_same_records = pytest.mark.slow(test_two_workers_make_the_same_records)


class Dead:
    exitcode = -9

    def join(self):
        pass


def test_a_case_that_kills_its_worker_twice_has_failed(subject, tmp_path, whole):
    store = StudyStore.create(tmp_path, TINY, subject.fingerprint)
    store.merge(whole)
    (cases,) = chainfx.study.running.units_of(TINY)
    worker, job, seen, deaths = _Worker(Dead(), None, cases, cases[1]), Job(TINY, subject, tmp_path), Seen(), {}
    assert chainfx.study.running._after_end(worker, deaths, job, seen) == [cases] and seen.records == []
    assert chainfx.study.running._after_end(worker, deaths, job, seen) == [cases]
    assert [record.failed for record in seen.records] == [
        "its worker process died 2 times, the last time with code -9."
    ]
    before = dataclasses.replace(worker, in_flight=None)
    chainfx.study.running._after_end(before, deaths, job, seen)
    with pytest.raises(StudyError) as caught:
        chainfx.study.running._after_end(before, deaths, job, seen)
    assert str(caught.value) == ("a worker process ended with code -9 before it began; run with workers=1 to see why.")


SCRIPT = """
import sys
from chainfx.study import run_study
from tests.study.designs import TINY
run_study(TINY, sys.argv[1])
"""


def killed_after(seconds, folder):
    """Run the tiny study in a process of its own and kill it; whether it was still running."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder)],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (folder / "stages").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_kill_9_while_stages_are_made_loses_at_most_the_one_in_flight(tmp_path, subject, whole):
    assert killed_after(0.2, tmp_path)
    for record in StudyStore.open(tmp_path).records():
        assert dataclasses.replace(record, seconds=0.0) in untimed(whole)
    assert untimed(run_study(TINY, tmp_path, subject=subject)) == untimed(whole)


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments(tmp_path, subject, whole):
    rng = random.Random(0)
    for number in range(20):
        folder = tmp_path / str(number)
        for _ in range(rng.choice((1, 2))):
            killed_after(rng.uniform(0, 1.5), folder)
        known = {record.name for record in StudyStore.open(folder).records()}
        seen = Seen()
        store = run_study(TINY, folder, subject=subject, watcher=seen)
        assert known <= {record.name for record in store.records()}
        assert untimed(store) == untimed(whole)


def test_data_loaders_cannot_be_halved():
    loader = torch.utils.data.DataLoader([(torch.zeros(1, 8, 8), 0)] * 8, batch_size=4)
    data = from_loaders(loader, loader, num_classes=10, fingerprint="zeros")
    subject = Subject(partial(zoo.resnet, (1,), 4, in_channels=1), data)
    with pytest.raises(Exception, match=r"the data come from DataLoaders, which cannot be split; give data in memory"):
        len(subject.judges)
