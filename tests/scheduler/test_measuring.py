"""What is measured of a stage: in one walk over the validation data, where the run says, in its precision."""

import dataclasses

import pytest
import torch

import chainfx
from chainfx.errors import InputError
from chainfx.ir.graph import ops
from chainfx.passes import EarlyExit, Execution, PruneChannels, PruneWeights, Quantize
from chainfx.scheduler import StageRunner
from chainfx.training import Trainer, digits
from chainfx.training import trainer as trainer_module
from tests.nets import graph_of, images, small_resnet
from tests.trainers import few_digits

X = images(4)


class Walks:
    """A split that counts how often it is read."""

    def __init__(self, split):
        self.split, self.count, self.sizes = split, 0, set()

    def __len__(self):
        return len(self.split)

    def steps(self, batch_size):
        return self.split.steps(batch_size)

    def batches(self, batch_size, generator=None):
        self.count += 1
        for inputs, targets in self.split.batches(batch_size, generator):
            self.sizes.add(len(targets))
            yield inputs, targets


class Untrained(Trainer):
    """The default trainer without the training, so that what is left to count is measuring."""

    def tune(self, graph_module, request, *, seed, on_epoch):
        pass


def trainer_and_walks(kind=Untrained):
    walks = Walks(digits().validation)
    return kind(dataclasses.replace(digits(), validation=walks), epochs=1, batch_size=256), walks


@pytest.mark.parametrize(
    ("passes", "walks"),
    [
        ([], 1),
        ([PruneWeights(0.5)], 2),
        ([EarlyExit(exits=1, keep=True)], 2),  # the sweep's answers are what the stage is measured by
        ([EarlyExit(exits=1, max_drop=0.0)], 2),  # taken back: what the stage before had
        ([EarlyExit(exits=1, keep=True), PruneWeights(0.5), Quantize(8, 8)], 4),
    ],
)
def test_a_stage_takes_one_walk(passes, walks):
    trainer, counted = trainer_and_walks()
    runner = StageRunner(graph_of(small_resnet((1, 1)), X), example_inputs=(X,), trainer=trainer)
    stage = runner.first()
    for one in passes:
        stage = runner.next(stage, one)
    assert counted.count == walks
    assert bool(stage.record.exit_rates) == bool(passes and getattr(passes[0], "keep", False))


def test_one_walk_finds_what_two_would():
    class Evaluates(Untrained):
        measure = None

    def record(kind):
        trainer, _ = trainer_and_walks(kind)
        runner = StageRunner(graph_of(small_resnet((1, 1)), X), example_inputs=(X,), trainer=trainer)
        stages = [runner.next(runner.first(), EarlyExit(exits=2, threshold=0.14, keep=True))]
        stages.append(runner.next(stages[0], PruneWeights(0.3)))
        return [(stage.record.metric, stage.record.exit_rates) for stage in stages]

    once = record(Untrained)
    assert once == record(Evaluates)
    assert sum(once[1][1].values()) > 0


def test_measuring_is_in_half_precision_where_asked_and_quantizers_are_not(monkeypatch):
    seen = set()
    exact = ops.at_least_float32
    monkeypatch.setattr(ops, "at_least_float32", lambda tensor: seen.add(exact(tensor).dtype) or exact(tensor))
    for precision in ("float32", "bfloat16", "float16"):
        trainer, _ = trainer_and_walks()
        dtypes = set()
        graph_module = graph_of(small_resnet((1, 1)), X)
        graph_module.fc.register_forward_hook(lambda *_: None)
        graph_module.flatten.register_forward_hook(lambda module, args, out, d=dtypes: d.add(out.dtype))
        trainer.on(Execution(precision=precision)).evaluate(graph_module)
        assert dtypes == {getattr(torch, precision)}
    quantized = chainfx.compile(small_resnet((1, 1)), [Quantize(8, 8)], example_inputs=X, calibration=[X])
    for precision in ("bfloat16", "float16"):
        trainer_and_walks()[0].on(Execution(precision=precision)).evaluate(quantized.graph_module)
    assert seen == {torch.float32}


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 2e-2), ("float16", 3e-3)])
def test_a_whole_chain_is_measured_in_half_precision(precision, tolerance):
    """Importance, calibration, the sweep and every stage: the answers are near, and the records say how it was."""
    data = few_digits()
    trainer = Trainer(data, epochs=1)
    passes = [PruneChannels(0.25, importance="taylor"), Quantize(8, 8), EarlyExit(exits=1, max_drop=0.5, keep=True)]
    half = trainer.on(Execution(precision=precision))
    small = chainfx.compile(
        small_resnet((1, 1)),
        passes,
        example_inputs=data.example_inputs(2),
        trainer=trainer,
        warn_drop=None,
        execution=half.execution,
    )
    assert all(record.surroundings.precision.endswith(f", {precision}") for record in small.report.records)
    last = small.report.records[-1]
    assert (last.metric, last.exit_rates) == dataclasses.astuple(half.measure(small.graph_module))
    (x,), _ = next(iter(trainer.validation))
    with torch.no_grad():
        exact = small.graph_module(x)
        with half.execution.measuring(x.device):
            near = small.graph_module(x)
    for one, other in zip(exact, near, strict=True):
        assert other.dtype == getattr(torch, precision)
        torch.testing.assert_close(one.softmax(1), other.float().softmax(1), atol=tolerance, rtol=0)


def test_the_batch_size_of_measuring_and_calibration_is_that_of_the_execution():
    trainer, walks = trainer_and_walks()
    placed = trainer.on(Execution(batch_size=30))
    placed.evaluate(graph_of(small_resnet((1, 1)), X))
    assert walks.sizes == {30, 24}
    assert {len(inputs[0]) for inputs in placed.calibration} == {30}
    assert trainer.fingerprint != placed.fingerprint


def test_the_execution_is_part_of_what_determines_a_stage():
    def key(**options):
        small = chainfx.compile(
            small_resnet((1, 1)), [PruneWeights(0.5)], example_inputs=X, execution=Execution(**options)
        )
        return small.report.records[-1].fingerprint

    assert len({key(), key(precision="bfloat16"), key(batch_size=8)}) == 3
    assert key() == key(device="cpu")


def test_the_trainer_computes_where_the_run_does(monkeypatch):
    places = []
    monkeypatch.setattr(trainer_module, "this_device", lambda: places.append("asked") or torch.device("cpu"))
    trainer, _ = trainer_and_walks()
    assert trainer.on(Execution("cpu"))._place(small_resnet((1, 1))) == torch.device("cpu")


def test_a_network_goes_to_cuda_where_torch_has_it(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert Execution().place(cpu) == cpu and Execution("cpu").place(cuda) == cpu
    monkeypatch.setattr("chainfx.passes.execution._has", lambda kind: kind == "cuda")
    assert Execution().place(cpu).type == "cuda" and Execution().place(torch.device("cuda", 1)).index == 1
    assert Execution("cpu").place(cpu) == cpu


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"device": "gpu"},
            "execution: device='gpu' is no device of torch; use 'cpu', 'cuda' or 'cuda:1'.",
        ),
        (
            {"device": "xpu"},
            "execution: device='xpu' is not there on this machine; use 'cpu' or leave it out.",
        ),
        (
            {"precision": "int8"},
            "execution: precision='int8' is out of range; use 'float32', 'bfloat16' or 'float16'.",
        ),
        (
            {"batch_size": 0},
            "execution: batch_size=0 is out of range; use None or a whole number from 1.",
        ),
    ],
)
def test_executions_that_are_wrong(options, message):
    with pytest.raises(InputError) as caught:
        Execution(**options)
    assert str(caught.value) == message


def test_what_is_no_execution():
    with pytest.raises(InputError) as caught:
        chainfx.compile(small_resnet((1, 1)), [PruneWeights(0.5)], example_inputs=X, execution="cuda")
    assert str(caught.value) == ("execution is of type str; give a chainfx.passes.Execution, or leave it out.")
