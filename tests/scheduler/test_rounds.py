"""A pass with rounds is applied and tuned several times before it is finished, as one stage."""

import io
import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from chainfx.errors import PassError, TuningError
from chainfx.ir.capture.ways import capture
from chainfx.passes import PruneChannels
from chainfx.passes.base import Epoch, Granularity, Kind, Pass, PassInfo, PassResult, Skipped, TuneRequest
from chainfx.scheduler.planning import plan
from chainfx.scheduler.records import StageRecord
from chainfx.scheduler.runner import Listener, run
from chainfx.scheduler.store import StageStore
from tests.nets import images, small_resnet
from tests.trainers import FakeTrainer

SEEN = []


@dataclass(frozen=True)
class Adds(Pass):
    """Adds 1 to the first bias in every round and remembers what it was given; finishing adds 100."""

    info: ClassVar[PassInfo] = PassInfo("adds", Kind.STATIC, Granularity.LAYER)
    times: int = 3
    tunes: bool = True

    @property
    def rounds(self):
        return self.times

    def apply(self, graph_module, context, /):
        graph_module.get_parameter("fc.bias").data.add_(1)
        SEEN.append((context.round, context.entry.get_parameter("fc.bias").clone(), context.rng("a").initial_seed()))
        skipped = (Skipped("conv1", "always"), Skipped("conv1", f"round {context.round}"))
        tune = TuneRequest(("conv1.weight",)) if self.tunes else None
        return PassResult(graph_module, True, tune, skipped, {"round": context.round})

    def finish(self, graph_module, context, /):
        graph_module.get_parameter("fc.bias").data.add_(100)
        SEEN.append(("finish", context.round))
        return PassResult(graph_module, False, skipped=(Skipped("fc", "last"),), profile={"finished": (True,)})


class Log(Listener):
    def __init__(self):
        self.lines = []

    def begin(self, index, total, label):
        self.lines.append(f"begin {index}/{total}")

    def round(self, index, total):
        self.lines.append(f"round {index}/{total}")

    def epoch(self, epoch):
        self.lines.append(f"epoch {epoch.index}")

    def end(self, stage):
        self.lines.append(f"end {stage.record.name}")


def staged(*passes, trainer=None, store=None, listener=None):
    SEEN.clear()
    x = images(8)
    graph_module = capture(small_resnet((1, 1)), (x,))
    trainer = FakeTrainer(x) if trainer is None else trainer
    stages = run(
        graph_module,
        plan(list(passes), order="given"),
        example_inputs=(x,),
        trainer=trainer or None,
        store=store,
        listener=listener,
    )
    return list(stages), graph_module, trainer


def test_rounds_are_applied_and_tuned_then_finished_once():
    log = Log()
    (_, stage), graph_module, trainer = staged(Adds(), listener=log)
    start = graph_module.get_parameter("fc.bias")
    torch.testing.assert_close(stage.graph_module.get_parameter("fc.bias"), start + 103)
    assert [seen[0] for seen in SEEN] == [0, 1, 2, "finish"] and SEEN[-1] == ("finish", 2)
    assert all(torch.equal(entry, start) for _, entry, _ in SEEN[:3])
    assert [request.parameters for request in trainer.requests] == [("conv1.weight",)] * 3
    assert log.lines == [
        *("end original", "begin 1/1", "round 1/3", "epoch 1", "round 2/3", "epoch 1", "round 3/3", "epoch 1"),
        "end adds",
    ]


def test_every_round_is_tuned_with_a_seed_of_its_own():
    seeds = []

    class Seeds(FakeTrainer):
        def tune(self, graph_module, request, *, seed, on_epoch):
            seeds.append(seed)

    staged(Adds(), trainer=Seeds(images(8)))
    several = list(seeds)
    seeds.clear()
    staged(Adds(times=1), trainer=Seeds(images(8)))
    assert len(set(several)) == 3 and seeds == several[:1]


def test_the_record_holds_every_round_once():
    (_, stage), _, _ = staged(Adds())
    record = stage.record
    assert record.profile == {"rounds": [{"round": 0}, {"round": 1}, {"round": 2}], "finished": [True]}
    assert record.modified and record.tuned
    assert [item.reason for item in record.skipped] == ["always", "round 0", "round 1", "round 2", "last"]
    assert StageRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_one_round_is_told_as_before():
    log = Log()
    (_, stage), _, _ = staged(Adds(times=1), listener=log)
    assert stage.record.profile == {"round": 0, "finished": [True]}
    assert log.lines == ["end original", "begin 1/1", "epoch 1", "end adds"]


def test_without_a_trainer_and_without_a_wish_nothing_is_tuned():
    (_, stage), _, _ = staged(Adds(), trainer=False)
    assert not stage.record.tuned and [seen[0] for seen in SEEN] == [0, 1, 2, "finish"]
    (_, stage), _, trainer = staged(Adds(tunes=False))
    assert not stage.record.tuned and trainer.requests == []


def test_a_failure_in_a_later_round_keeps_the_stages_before(tmp_path):
    store = StageStore(tmp_path)
    x = images(8)
    with pytest.raises(TuningError):
        staged(Adds(times=1), Adds(), trainer=FakeTrainer(x, fail_at=3), store=store)
    trainer = FakeTrainer(x)
    stages, _, _ = staged(Adds(times=1), Adds(), trainer=trainer, store=store)
    assert [stage.resumed for stage in stages] == [False, True, False]
    assert len(trainer.requests) == 3


def test_a_trainer_that_changes_the_graph_in_a_later_round_is_refused():
    class Meddler(FakeTrainer):
        def tune(self, graph_module, request, *, seed, on_epoch):
            super().tune(graph_module, request, seed=seed, on_epoch=on_epoch)
            if len(self.requests) == 2:
                node = next(iter(graph_module.graph.nodes))
                with graph_module.graph.inserting_after(node):
                    graph_module.graph.call_function(torch.relu, (node,))

    with pytest.raises(PassError, match="the trainer changed the graph while tuning"):
        staged(Adds(), trainer=Meddler(images(8)))


def test_pruning_in_rounds_ends_with_the_channels_of_one_round():
    (_, several), _, trainer = staged(PruneChannels(0.6, rounds=3))
    (_, once), _, _ = staged(PruneChannels(0.6))
    assert len(trainer.requests) == 3
    assert [p.shape for p in several.graph_module.parameters()] == [p.shape for p in once.graph_module.parameters()]
    removed = [each["removed"] for each in several.record.profile["rounds"]]
    assert all(removed) and sum(removed) == once.record.profile["removed"]


def test_pruning_to_a_target_in_rounds_is_of_the_network_as_it_entered_the_pass():
    (_, first, stage), _, _ = staged(PruneChannels(0.25), PruneChannels(macs=0.5, rounds=2, scope="global"))
    left = stage.record.after.macs / first.record.after.macs
    assert 0.4 < left <= 0.5
    assert stage.record.profile["rounds"][-1]["macs"] == pytest.approx(left)
    assert 0.6 < stage.record.profile["rounds"][0]["macs"] <= 0.75


def test_the_terminal_says_which_round_it_is():
    from rich.console import Console

    from chainfx.progress import TerminalListener

    listener = TerminalListener(Console(force_terminal=True, file=io.StringIO()))
    listener.begin(1, 2, "adds(times=3)")
    for index in (1, 2):
        listener.round(index, 3)
        listener.epoch(Epoch(4, 5, 0.1, 0.5))
    assert listener._progress.tasks[0].description == (
        "stage 1/2 adds(times=3) (round 2/3) | epoch 4/5, accuracy 50.00%"
    )
    listener.close()
