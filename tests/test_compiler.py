import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import chainfx
from chainfx.errors import ArtifactError, InputError, PassError, TuningError
from chainfx.ir.graph.exits import Answer
from chainfx.passes import Distill, EarlyExit, Fuse, PruneChannels, PruneWeights, Quantize
from tests.budget import mostly_slow
from tests.nets import images, small_resnet
from tests.trainers import FakeTrainer

CHAIN = [EarlyExit(exits=1, max_drop=0.1, keep=True), Quantize(4, 4), PruneChannels(0.25), Distill(depth=0.5)]


@pytest.fixture(scope="module")
def x():
    return images(32)


@pytest.fixture(scope="module")
def net():
    return small_resnet((2, 2), width=8)


def run(net, x, trainer=None, **options):
    return chainfx.compile(net, CHAIN, example_inputs=x, trainer=trainer or FakeTrainer(x), **options)


@pytest.fixture(scope="module")
def whole(net, x):
    """What the chain gives."""
    return run(net, x)


def test_the_whole_chain_runs_in_the_order_of_the_plan_and_leaves_the_model_alone(net, x):
    before = copy.deepcopy(net.state_dict())
    trainer, stages = FakeTrainer(x), []
    small = run(net, x, trainer, on_stage=stages.append)
    names = [record.name for record in small.report.records]
    assert names == ["original", "distill", "prune-channels", "quantize", "early-exit"]
    assert [stage.record.name for stage in stages] == names
    assert [request.loss for request in trainer.requests] == ["kd", "recover", "recover", "recover"]
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not net.training
    assert torch.equal(stages[0].graph_module(x), net(x))
    torch.testing.assert_close(small(x), Answer(stages[-1].graph_module.eval())(x), atol=1e-5, rtol=1e-5)
    costs = [record.after for record in small.report.records]
    assert costs[0].macs > costs[1].macs > costs[2].macs
    assert costs[2].bitops > 10 * costs[3].bitops
    assert costs[4].expected_bitops <= costs[4].bitops
    assert sum(small.report.records[-1].exit_rates.values()) <= 1


@pytest.mark.parametrize("source", ["calibration", "trainer"])
def test_an_example_is_taken_from_what_is_there(net, x, source):
    given = {"calibration": [x[:6], x[6:9]]} if source == "calibration" else {"trainer": FakeTrainer(x)}
    small = chainfx.compile(net, [PruneWeights(0.5)], **given)
    assert [tensor.shape[0] for tensor in small.example_inputs] == [{"calibration": 6, "trainer": 1}[source]]
    assert small(x[:5]).shape == net(x[:5]).shape


class Empty(FakeTrainer):
    calibration = ()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "there is neither calibration nor a trainer"),
        ({"trainer": Empty(images(4)), "batch_dim": 1}, "batch_dim=1 and those of a trainer have the batch first"),
        ({"trainer": Empty(images(4))}, "the trainer has no batches of it"),
    ],
)
def test_without_any_example(net, given, why):
    with pytest.raises(InputError) as caught:
        chainfx.compile(net, [PruneWeights(0.5)], **given)
    assert str(caught.value) == (
        f"example_inputs is missing, and {why}; give one batch of inputs as the network takes them."
    )


def test_stages_before_a_pass_are_never_changed_by_it(net, x):
    states = []

    def remember(stage):
        states.append(
            (stage.graph_module, copy.deepcopy(stage.graph_module.state_dict()), str(stage.graph_module.graph))
        )

    run(net, x, on_stage=remember)
    for graph_module, state, text in states:
        assert str(graph_module.graph) == text
        assert all(torch.equal(state[key], value) for key, value in graph_module.state_dict().items())


def test_no_stage_shares_a_tensor_with_the_model(net, x):
    stages = []
    chainfx.compile(net, [PruneChannels(0.5)], example_inputs=x, on_stage=stages.append)
    own = {tensor.data_ptr() for tensor in net.state_dict().values()}
    for stage in stages:
        assert not own & {tensor.data_ptr() for tensor in stage.graph_module.state_dict().values()}


def test_two_runs_give_the_same_bits(net, x, whole):
    again = run(net, x)
    assert [r.fingerprint for r in again.report.records] == [r.fingerprint for r in whole.report.records]
    assert str(again.graph_module.graph) == str(whole.graph_module.graph)
    state = whole.graph_module.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.graph_module.state_dict().items())


FAILURES = (
    *(TuningError("epoch 1: the loss is nan."), KeyboardInterrupt(), MemoryError(), ZeroDivisionError()),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
)
QUICK = (FAILURES[1], FAILURES[-1])  # what is no Exception, and what is one of another library


@pytest.mark.parametrize("failure", mostly_slow(FAILURES, QUICK), ids=lambda failure: type(failure).__name__)
def test_a_failure_half_way_keeps_what_was_finished_and_a_second_call_resumes(net, x, whole, tmp_path, failure):
    with pytest.raises(type(failure)) as caught:
        run(net, x, FakeTrainer(x, fail_at=3, failure=failure), workdir=tmp_path)
    partial = caught.value.partial
    assert [record.name for record in partial.report.records] == ["original", "distill", "prune-channels"]
    assert partial(x).shape == (32, 10)
    assert "finished stages: original, distill, prune-channels" in caught.value.__notes__
    trainer, resumed = FakeTrainer(x), []
    small = run(net, x, trainer, workdir=tmp_path, on_stage=lambda stage: resumed.append(stage.resumed))
    assert resumed == [False, True, True, False, False]
    assert len(trainer.requests) == 2
    state = whole.graph_module.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in small.graph_module.state_dict().items())


def test_an_error_of_the_callback_keeps_what_was_finished(net, x):
    failure = LookupError("the dashboard is away")

    def report(stage):
        if stage.record.index == 2:
            raise failure

    with pytest.raises(LookupError) as caught:
        run(net, x, on_stage=report)
    assert caught.value is failure
    assert [r.name for r in failure.partial.report.records] == ["original", "distill", "prune-channels"]


class SealedError(Exception):
    partial = property(lambda self: "its own")


def test_an_error_that_takes_no_attribute_passes_as_it_is(net, x):
    failure = SealedError()
    with pytest.raises(SealedError) as caught:
        run(net, x, FakeTrainer(x, fail_at=1, failure=failure))
    assert caught.value is failure and failure.partial == "its own"


@pytest.fixture(scope="module")
def workdir(net, x, tmp_path_factory):
    """A working folder with one stage."""
    folder = tmp_path_factory.mktemp("workdir")
    chainfx.compile(net, [PruneChannels(0.5)], example_inputs=x, trainer=FakeTrainer(x), workdir=folder)
    return folder


@pytest.mark.parametrize("change", [None, "seed", "data", "options", "weights"])
def test_a_stage_is_taken_from_the_workdir_only_if_nothing_that_determines_it_changed(net, x, workdir, change):
    other = copy.deepcopy(net)
    if change == "weights":
        other.conv1.weight.data.view(-1)[0] += 1
    resumed = []
    chainfx.compile(
        other,
        [PruneChannels(0.25 if change == "options" else 0.5)],
        example_inputs=x,
        trainer=FakeTrainer(x, name="other" if change == "data" else "fake"),
        seed=1 if change == "seed" else 0,
        workdir=workdir,
        on_stage=lambda stage: resumed.append(stage.resumed),
    )
    assert resumed == [False, change is None]


def test_without_a_trainer_passes_that_need_none_run(net, x):
    small = chainfx.compile(
        net, [Quantize(8, 8), PruneChannels(0.25), Fuse()], example_inputs=x, calibration=[x[:16], x[16:]]
    )
    assert [r.name for r in small.report.records] == ["original", "prune-channels", "quantize", "fuse"]
    assert small.report.records[-1].metric is None
    assert not any(record.tuned for record in small.report.records)
    pruned = chainfx.compile(net, [Fuse(), PruneChannels(0.25)], example_inputs=x)
    error = (small(x) - pruned(x)).norm() / pruned(x).norm()
    assert error < 0.05


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        (
            [PruneChannels(0.5), EarlyExit()],
            "early-exit: this pass trains, and there is no trainer; "
            "give trainer=chainfx.training.Trainer(data, ...) or leave the pass out.",
        ),
        (
            [PruneChannels(0.5), Quantize(8, 8)],
            "quantize: this pass needs calibration data and there is none; "
            "give calibration=[batches of inputs] or a trainer.",
        ),
    ],
)
def test_a_pass_that_lacks_something_says_so_before_anything_runs(net, x, passes, message):
    seen = []
    with pytest.raises(PassError) as caught:
        chainfx.compile(net, passes, example_inputs=x, on_stage=seen.append)
    assert str(caught.value) == message
    assert not seen


def test_weights_alone_need_no_calibration(net, x):
    small = chainfx.compile(net, [Quantize(8, 32, first=None, last=None)], example_inputs=x)
    assert len(small.report.records) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"example_inputs": "x"},
            "example_inputs must be a tensor or a tuple of tensors, but is str; give one batch of inputs.",
        ),
        ({"model": "resnet18"}, "model is a str, not a torch.nn.Module; give the network itself."),
        ({"passes": []}, "passes is []; give a list with at least one pass, or a Plan."),
        ({"passes": Fuse()}, "passes is Fuse(); give a list with at least one pass, or a Plan."),
        ({"calibration": []}, "calibration is empty; give at least one batch of inputs, or leave it out."),
    ],
)
def test_wrong_inputs(net, x, options, message):
    with pytest.raises(InputError) as caught:
        chainfx.compile(**{"model": net, "passes": [Fuse()], "example_inputs": x, **options})
    assert str(caught.value) == message


def test_a_calibration_batch_of_a_wrong_shape_and_a_folder_that_cannot_be_made(net, x, tmp_path):
    with pytest.raises(PassError) as caught:
        chainfx.compile(net, [Quantize(8, 8)], example_inputs=x, calibration=[images(2, channels=2)])
    assert str(caught.value).startswith(
        "quantize: the network does not accept a calibration batch of shape (2, 2, 8, 8): "
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError) as caught:
        chainfx.compile(net, [Fuse()], example_inputs=x, workdir=tmp_path / "file")
    assert str(caught.value) == f"{tmp_path / 'file'} cannot be made a working folder: File exists; give another."


def test_an_example_of_a_wrong_shape_names_the_shape(net):
    with pytest.raises(
        InputError, match=r"^the (model|network) does not accept example_inputs of shape \(2, 3, 8, 8\): "
    ):
        chainfx.compile(net, [Fuse()], example_inputs=torch.randn(2, 3, 8, 8))


def test_the_given_order_is_run_as_written_and_the_findings_are_in_the_report(net, x):
    small = chainfx.compile(
        net, [Quantize(8, 8), PruneChannels(0.25)], example_inputs=x, calibration=[x], order="given"
    )
    assert [record.name for record in small.report.records] == ["original", "quantize", "prune-channels"]
    assert "prune-channels" in small.report.plan


def test_a_trainer_that_changes_the_graph_is_refused(net, x):
    class Meddler(FakeTrainer):
        def tune(self, graph_module, request, *, seed, on_epoch):
            node = next(iter(graph_module.graph.nodes))
            with graph_module.graph.inserting_after(node):
                graph_module.graph.call_function(torch.relu, (node,))

    with pytest.raises(PassError) as caught:
        chainfx.compile(net, [PruneChannels(0.5)], example_inputs=x, trainer=Meddler(x))
    assert str(caught.value) == (
        "prune-channels: the trainer changed the graph while tuning; it may change parameters only."
    )


def test_count_uses_the_measured_exit_rates_of_a_compressed_model(x, whole):
    report = chainfx.count(whole, x)
    last = whole.report.records[-1]
    assert float(report.expected_bitops) == pytest.approx(last.after.expected_bitops)
    assert report.bitops == last.after.bitops
    assert dataclasses.asdict(last.after)["macs"] == report.macs


def test_the_report_prints_every_stage_and_the_plan(whole):
    text = str(whole.report)
    for word in ("distill(depth=0.5)", "quantize(4, 4)", "arXiv 2403.17447", "times fewer BitOps"):
        assert word in text


class Heads(nn.Module):
    """Several outputs by name, and one that ``max`` names."""

    def __init__(self):
        super().__init__()
        self.body, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = torch.relu(self.body(x))
        return {"mask": self.a(x), "boxes": [self.b(x), x.max(1).values]}


def test_outputs_by_name_keep_their_names(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = Heads().eval()
    small = chainfx.compile(model, [PruneWeights(0.1), Quantize(8, 8)], example_inputs=x, calibration=[x])
    found = small(x)
    wanted = model(x)
    assert list(found) == ["mask", "boxes"]
    for one, other in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=0.2, atol=0.2)
    small.save(tmp_path)
    again = chainfx.load(tmp_path)(x)
    assert all(map(torch.equal, tree_leaves(again), tree_leaves(found)))


class Branch(nn.Module):
    """Looks at its data, so that it stays one node."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_module_that_looks_at_its_data_stays_as_it_is(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6), Branch(), nn.Linear(6, 2)).eval()
    small = chainfx.compile(model, [PruneChannels(0.5)], example_inputs=x)
    assert small.graph_module.get_parameter("0.weight").shape == (8, 8)
    assert small.graph_module.get_parameter("2.weight").shape == (6, 8)
    assert small(x).shape == (4, 2)
    with pytest.raises(ArtifactError, match=r"module '3' is of class tests.test_compiler.Branch, whose code"):
        small.save(tmp_path)
    own = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6), Branch(), nn.Linear(6, 2)).eval()
    own.load_state_dict(model.state_dict())
    again = chainfx.compile(own, [PruneChannels(0.5)], example_inputs=x)
    assert again.report.records[0].fingerprint == small.report.records[0].fingerprint


def test_hooks_are_no_secret(tmp_path):
    """A layer with a hook runs as it is; it is not saved without the hook, and not copied with what the hook made."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    with torch.no_grad():
        wanted = model(x)
    small = chainfx.compile(model, [PruneWeights(0.0)], example_inputs=x)
    torch.testing.assert_close(small(x), wanted)
    with pytest.raises(ArtifactError, match=r"module '0' \(torch.nn.modules.conv.Conv2d\) has a hook, whose code"):
        small.save(tmp_path)
    model(x)
    with pytest.raises(InputError, match=r"keeps a tensor that it computed.*; run the network once in torch.no_grad"):
        chainfx.compile(model, [PruneWeights(0.0)], example_inputs=x)


class Trimmed(nn.Module):
    """Gives as much as its data say."""

    def forward(self, x):
        return x[:, : int(x.sum() > 0) + 1]


def test_a_module_whose_shape_follows_its_data_is_refused():
    model = nn.Sequential(nn.Linear(8, 6), Trimmed()).eval()
    with pytest.raises(InputError, match="what node '_1' gives depends on the data"):
        chainfx.compile(model, [PruneWeights(0.5)], example_inputs=torch.randn(4, 8))
