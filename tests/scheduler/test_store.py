"""Finished stages on disk: whole or not there, shared by processes, and opened by their path."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import chainfx
from chainfx.errors import ArtifactError, CostError, InputError, StageWarning, TuningError
from chainfx.ir.artifact.documents import digest_of
from chainfx.passes import EarlyExit, PruneChannels, PruneWeights, Quantize
from chainfx.scheduler import StageRecord, StageStore, open_stage, store
from tests.fresh import fresh
from tests.nets import images, small_resnet
from tests.trainers import FakeTrainer

X = torch.linspace(-1, 1, 128).reshape(32, 4)
CHAIN = [PruneChannels(0.5), Quantize(4, 8)]
ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests/fixtures/chainfx_0_1"


def tiny_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10)).eval()


def run(workdir=None, trainer=None, net=None, passes=CHAIN, **options):
    """The stages of a small chain, the original first."""
    stages = []
    trainer = trainer or FakeTrainer(X)
    chainfx.compile(
        net or tiny_net(), passes, example_inputs=X, trainer=trainer, workdir=workdir, on_stage=stages.append, **options
    )
    return stages


def places(folder):
    return sorted(path.name for path in folder.iterdir())


def same(one, other):
    state = other.graph_module.state_dict()
    assert str(one.graph_module.graph) == str(other.graph_module.graph)
    assert all(torch.equal(value, state[name]) for name, value in one.graph_module.state_dict().items())


def test_a_second_run_reads_what_the_first_one_kept(tmp_path):
    first, second = run(tmp_path), run(tmp_path)
    assert [stage.resumed for stage in first] == [False, False, False]
    assert [stage.resumed for stage in second] == [False, True, True]
    assert [stage.record for stage in second] == [stage.record for stage in first]
    for one, other in zip(first, second, strict=True):
        same(one, other)
    assert places(tmp_path) == sorted(stage.record.fingerprint[:24] for stage in first[1:])
    for place in tmp_path.iterdir():
        assert places(place) == ["manifest.json", "model.safetensors", "record.json"]


def test_of_several_processes_the_first_keeps_and_all_go_the_same_way(tmp_path):
    class OneOfTwo(FakeTrainer):
        processes, others = (0, 2), True

        def agreed(self, found):
            return found and self.others

    trainer = OneOfTwo(X)
    trainer.processes = (1, 2)
    run(tmp_path, trainer)
    assert places(tmp_path) == []
    trainer.processes = (0, 2)
    first = run(tmp_path, trainer)
    assert len(places(tmp_path)) == 2 and len(trainer.requests) == 4
    assert [stage.resumed for stage in run(tmp_path, trainer)] == [False, True, True]
    trainer.others = False  # another process has not this folder
    again = run(tmp_path, trainer)
    assert [stage.resumed for stage in again] == [False, False, False] and len(trainer.requests) == 6
    for one, other in zip(first, again, strict=True):
        same(one, other)


def test_a_working_folder_is_made_with_the_folders_above_it(tmp_path):
    run(tmp_path / "runs" / "monday", passes=[PruneChannels(0.5)])
    assert len(places(tmp_path / "runs" / "monday")) == 1


def test_the_record_of_the_network_as_it_came_says_that_nothing_was_done():
    record = run(passes=[PruneChannels(0.5)])[0].record
    assert (record.seconds, record.tuned, record.modified, record.revision) == (0.0, False, False, 1)
    assert (record.exit_rates, record.skipped, record.profile, record.remarks) == ({}, (), {}, ())


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def other_format(place):
    path = place / "manifest.json"
    body = {**json.loads(path.read_text()), "format": 9}
    body.pop("sha256")
    path.write_text(json.dumps({"sha256": digest_of(body), **body}))


def swap_records(place):
    (other,) = (path for path in place.parent.iterdir() if path != place)
    (place / "record.json").write_bytes((other / "record.json").read_bytes())


CHANGED = "was changed after it was saved (its SHA-256 differs)"
DAMAGE = {
    "tensors cut short": (
        lambda place: (place / "model.safetensors").write_bytes((place / "model.safetensors").read_bytes()[:-9]),
        "{place}/model.safetensors was changed or cut short after it was saved (its SHA-256 differs)",
    ),
    "no tensors": (lambda place: (place / "model.safetensors").unlink(), "{place}/model.safetensors does not exist"),
    "record changed": (
        lambda place: edit(place / "record.json", '"modified":true', '"modified":false'),
        f"{{place}}/record.json {CHANGED}",
    ),
    "record cut short": (
        lambda place: (place / "record.json").write_text('{"sha256":'),
        "{place}/record.json is not a chainfx record or is cut short",
    ),
    "no record": (lambda place: (place / "record.json").unlink(), "{place} holds no stage"),
    "no manifest": (lambda place: (place / "manifest.json").unlink(), "{place}/manifest.json does not exist"),
    "empty": (lambda place: [path.unlink() for path in place.iterdir()], "{place}/manifest.json does not exist"),
    "other format": (other_format, "{place}/manifest.json has format 9, this chainfx reads 1"),
    "another stage": (swap_records, "its record is that of another stage"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The stages of a chain, and the folder that keeps them."""
    folder = tmp_path_factory.mktemp("finished")
    return run(folder), folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_stage_is_computed_again_and_that_is_said_once(finished, tmp_path, damage):
    whole, folder = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    place = tmp_path / whole[1].record.fingerprint[:24]
    spoil, reason = DAMAGE[damage]
    spoil(place)
    with pytest.warns(StageWarning) as caught:
        again = run(tmp_path)
    assert [str(warning.message) for warning in caught] == [
        f"the stage in {place} cannot be read and is computed again: {reason.format(place=place)}."
    ]
    assert [stage.resumed for stage in again] == [False, False, True]
    same(again[2], whole[2])
    assert [stage.resumed for stage in run(tmp_path)] == [False, True, True]
    assert len(places(tmp_path)) == 2


def test_a_stage_that_another_version_cannot_even_parse_is_a_miss(tmp_path, monkeypatch):
    run(tmp_path)

    def fail(folder):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(store, "load_graph", fail)
    with pytest.warns(StageWarning) as caught:
        assert [stage.resumed for stage in run(tmp_path)] == [False, False, False]
    assert len(caught) == 2
    assert str(caught[0].message).endswith("is computed again: RuntimeError: no such operator.")


@pytest.mark.parametrize("writer", ["write_document", "save_graph"])
def test_a_run_that_ends_while_it_writes_leaves_nothing_that_looks_finished(tmp_path, monkeypatch, writer):
    calls, write = [], getattr(store, writer)

    def interrupted(*args):
        calls.append(args)
        if len(calls) > (writer == "save_graph"):  # the first network written is the trial
            (args[0] if isinstance(args[0], Path) else args[1] / "model.safetensors").write_text("{")
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(store, writer, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert places(tmp_path) == []


def test_a_killed_process_leaves_nothing_that_looks_finished(tmp_path):
    code = (
        "import os, pathlib, signal; from tests.scheduler.test_store import run; import sys;"
        "pathlib.Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL); run(sys.argv[1])"
    )
    assert fresh(code, tmp_path, check=False).status == -signal.SIGKILL
    (left,) = places(tmp_path)
    assert left.startswith(".") and left.endswith(".part")
    assert places(tmp_path / left) == ["manifest.json", "model.safetensors", "record.json"]
    assert StageStore(tmp_path).records() == ()
    assert [stage.resumed for stage in run(tmp_path)] == [False, False, False]


@pytest.mark.slow
def test_three_processes_on_one_folder_end_with_the_same_records(tmp_path):
    code = (
        "import json, sys; from tests.scheduler.test_store import run;"
        "print(json.dumps([stage.record.to_dict() for stage in run(sys.argv[1])]))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert outputs[0] == outputs[1] == outputs[2]
    records = [StageRecord.from_dict(plain) for plain in json.loads(outputs[0])]
    assert places(tmp_path) == sorted(record.fingerprint[:24] for record in records[1:])
    assert StageStore(tmp_path).records() == tuple(records[1:])
    assert [stage.record for stage in run(tmp_path)] == records


def test_the_stage_of_a_process_that_was_first_counts(tmp_path):
    stage = run()[1]
    first = dataclasses.replace(stage, record=dataclasses.replace(stage.record, seconds=1.5))
    folder = StageStore(tmp_path)
    assert folder.keep(first).record.seconds == 1.5
    later = folder.keep(stage)
    assert later.record.seconds == 1.5
    same(later, stage)
    assert len(places(tmp_path)) == 1


def test_a_run_goes_on_with_what_another_finished_meanwhile(tmp_path, monkeypatch):
    first = run(tmp_path)
    monkeypatch.setattr(StageStore, "find", lambda *_: None)
    assert [stage.record for stage in run(tmp_path)] == [stage.record for stage in first]


def test_a_full_disk_costs_the_copy_and_not_the_stage(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "write_document", full)
    with pytest.warns(StageWarning) as caught:
        stages = run(tmp_path)
    assert [str(warning.message) for warning in caught] == [
        f"the stage {stage.record.label!r} is finished but cannot be kept in {tmp_path}: No space left on device."
        for stage in stages[1:]
    ]
    assert places(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_found_before_anything_runs(tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(store, "save_graph", refuse)
    trainer, seen = FakeTrainer(X), []
    with pytest.raises(ArtifactError) as caught:
        chainfx.compile(tiny_net(), CHAIN, example_inputs=X, trainer=trainer, workdir=tmp_path, on_stage=seen.append)
    assert str(caught.value) == f"{tmp_path} cannot keep stages: Permission denied; give another workdir, or none."
    assert not seen and not trainer.requests


class Branch(nn.Module):
    """Looks at its data, so that it stays one node."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_kept_is_found_before_anything_is_trained(tmp_path):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), Branch(), nn.Linear(6, 10)).eval()
    trainer = FakeTrainer(X)
    with pytest.raises(ArtifactError) as caught:
        run(tmp_path, trainer, net)
    assert str(caught.value) == (
        "module '3' is of class tests.scheduler.test_store.Branch, whose code a safe file cannot hold; replace it by "
        f"torch.nn modules to save, or leave workdir out: {tmp_path} could keep no stage."
    )
    assert not trainer.requests and not places(tmp_path)
    assert len(run(None, trainer, net, [PruneChannels(0.5)])) == 2


def test_records_are_read_without_a_network(tmp_path, monkeypatch):
    stages = run(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / ".abc.part").mkdir()

    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(store, "load_graph", fail)
    for place in tmp_path.iterdir():
        (place / "model.safetensors").unlink(missing_ok=True)
    assert StageStore(tmp_path).records() == tuple(stage.record for stage in stages[1:])


def test_a_record_that_cannot_be_read_is_left_out_and_named(tmp_path):
    stages = run(tmp_path)
    place = tmp_path / stages[1].record.fingerprint[:24]
    edit(place / "record.json", '"modified":true', '"modified":false')
    with pytest.warns(StageWarning) as caught:
        records = StageStore(tmp_path).records()
    assert records == (stages[2].record,)
    assert [str(warning.message) for warning in caught] == [
        f"the record of the stage in {place} cannot be read and is left out: {place}/record.json {CHANGED}."
    ]


def test_a_stage_opened_by_its_path_is_measured_and_gone_on_from(tmp_path):
    whole = run(tmp_path)
    place = tmp_path / whole[1].record.fingerprint[:24]
    stage = open_stage(place)
    assert stage.record == whole[1].record and stage.resumed
    same(stage, whole[1])
    assert chainfx.count(stage.graph_module, X) == stage.record.report
    for start in (place, str(place), stage):
        trainer = FakeTrainer(X)
        rest = run(None, trainer, passes=CHAIN[1:], start=start)
        assert [each.record.name for each in rest] == ["original", "prune-channels", "quantize"]
        assert [each.resumed for each in rest] == [False, True, False]
        assert rest[2].record.fingerprint == whole[2].record.fingerprint
        assert rest[2].record.index == 2 and rest[2].record.before == whole[1].record.after
        same(rest[2], whole[2])
        assert len(trainer.requests) == 1
    same(stage, whole[1])


def test_a_stage_that_another_torch_made_is_a_start_and_its_children_have_keys_of_their_own(tmp_path):
    whole = run(tmp_path)
    made = whole[1].record
    elsewhere = dataclasses.replace(made.surroundings, torch="9.9.0+cu999", chainfx="7.0", device="cuda")
    foreign = dataclasses.replace(made, fingerprint="f" * 64, surroundings=elsewhere)
    StageStore(tmp_path / "gpu").keep(dataclasses.replace(whole[1], record=foreign))
    stage = open_stage(tmp_path / "gpu" / ("f" * 24))
    assert stage.record.surroundings.torch == "9.9.0+cu999"
    rest = run(tmp_path, passes=CHAIN[1:], start=stage)
    assert [each.resumed for each in rest] == [False, True, False]
    assert rest[2].record.parent == "f" * 64 and rest[2].record.surroundings == made.surroundings
    same(rest[2], whole[2])
    assert [each.resumed for each in run(tmp_path, passes=CHAIN[1:], start=stage)] == [False, True, True]
    teacher = tiny_net()
    teacher[0].weight.data[0, 0] += 1
    assert not any(each.resumed for each in run(tmp_path, net=teacher, passes=CHAIN[1:], start=stage)[2:])


def test_a_record_of_a_version_that_knew_more_is_read(tmp_path):
    stage = run()[1]
    plain = stage.record.to_dict()
    plain["energy"] = 3
    plain["surroundings"]["moon"] = "full"
    assert StageRecord.from_dict(plain) == stage.record


def test_a_stage_of_chainfx_0_1_is_opened_and_gone_on_from(tmp_path):
    records = StageStore(OLD / "work").records()
    assert [record.name for record in records] == ["prune-channels", "quantize"]
    pruned = open_stage(OLD / "work" / records[0].fingerprint[:24])
    assert pruned.record == records[0]
    assert (pruned.record.report, pruned.record.surroundings, pruned.record.after.macs) == (None, None, 28)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    small = chainfx.compile(net, [Quantize(4, 8)], example_inputs=x, calibration=[x], start=pruned)
    assert small.report.records[-1].after == records[1].after
    assert "prune-channels" in str(small.report)
    with pytest.raises(CostError) as caught:
        pruned.record.costs_under("strict")
    assert str(caught.value) == (
        "the record of stage 'prune-channels(ratio=0.5)' has totals under 'mac_bw_ba' alone, as chainfx 0.1 wrote it; "
        "count its network again under 'strict'."
    )


def test_what_is_no_stage_is_refused(tmp_path):
    with pytest.raises(InputError) as wrong:
        run(start=3)
    assert str(wrong.value) == "start is a int; give a finished Stage or its folder in a workdir."
    with pytest.raises(ArtifactError) as nowhere:
        run(start=tmp_path / "a")
    assert str(nowhere.value) == (
        f"{tmp_path / 'a'} is no folder; give that of a finished stage, a sub-folder of a workdir."
    )
    chainfx.compile(tiny_net(), [PruneChannels(0.5)], example_inputs=X).save(tmp_path)
    with pytest.raises(ArtifactError) as model:
        open_stage(tmp_path)
    assert str(model.value) == f"{tmp_path} holds no stage; give a sub-folder of a workdir."
    stage = run()[1]
    with pytest.raises(InputError, match=r"^the network does not accept example_inputs of shape \(2, 5\): "):
        chainfx.compile(nn.Linear(5, 10).eval(), [PruneWeights(0.5)], example_inputs=torch.randn(2, 5), start=stage)


def test_a_failure_after_a_start_keeps_the_start(tmp_path):
    stage = run()[1]
    with pytest.raises(TuningError) as caught:
        run(None, FakeTrainer(X, fail_at=1), passes=CHAIN[1:], start=stage)
    assert [record.name for record in caught.value.partial.report.records] == ["original", "prune-channels"]


def test_every_convention_is_read_from_the_record():
    x = images(32)
    stages = []
    passes = [EarlyExit(exits=1, max_drop=0.2, keep=True), Quantize(3, 4), PruneChannels(0.25)]
    net = small_resnet((2, 2), width=8)
    chainfx.compile(net, passes, example_inputs=x, trainer=FakeTrainer(x), on_stage=stages.append)
    assert stages[-1].record.exit_rates
    for stage in stages:
        record = stage.record
        rates = record.exit_rates or None
        counted = chainfx.count(stage.graph_module, x, "strict", rates)
        assert record.report.reprice("strict") == counted
        found = record.costs_under("strict")
        assert (found.convention, found.bitops, found.expected_bitops, found.macs, found.storage_bits) == (
            "strict",
            float(counted.bitops),
            float(counted.expected_bitops),
            counted.macs,
            counted.storage_bits,
        )
        assert record.costs_under(record.after.convention) == record.after
        assert StageRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_costs_that_nobody_measured_stay_unknown_under_every_convention():
    stage = run()[1]
    unmeasured = dataclasses.replace(stage.record.after, expected_macs=None, expected_bitops=None)
    record = dataclasses.replace(stage.record, after=unmeasured)
    assert record.costs_under("strict").expected_bitops is None
