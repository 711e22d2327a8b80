import contextlib
import copy
import math
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from chainfx.deploy import backend, torch_backend
from chainfx.errors import CaptureError, InputError, PassError
from chainfx.passes import Fuse, LowRank, PostTrainingQuantize, PruneChannels, Quantize
from chainfx.scheduler import run
from tests.budget import mostly_slow
from tests.nets import images, warm

ROOT = Path(__file__).parents[2]


class Net(nn.Module):
    """A layer with BatchNorm, a dropout, a shape that depends on the batch, and a linear layer."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.drop, self.fc = nn.Dropout(), nn.Linear(8, 4)
        warm(self)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.fc(self.drop(x).view(x.shape[0], 8))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def seen(monkeypatch):
    """The graphs that reach the inner compiler."""
    graphs = []

    def inner(name):
        def compiled(graph_module, example_inputs):
            graphs.append(graph_module)
            return graph_module.forward

        return compiled

    monkeypatch.setattr("torch._dynamo.lookup_backend", inner)
    return graphs


def compiled(model, passes, *, inner="eager", **more):
    return torch.compile(model, backend=torch_backend, options={"passes": passes, "inner": inner}, **more)


def called(graph_module):
    return {getattr(node.target, "__name__", node.target) for node in graph_module.graph.nodes if "call" in node.op}


SPELLINGS = (("fuse", None), ("fuse", True), (Fuse(), None), ({"fuse": None}, None), (Fuse().spec(), None))


@torch.no_grad()
@pytest.mark.parametrize("spelling", mostly_slow(SPELLINGS, SPELLINGS[1:3]))
def test_a_pass_in_each_spelling_works_on_the_graph_and_not_on_the_model(seen, spelling):
    one, dynamic = spelling
    model, x = Net(), images(3)
    before, expected = copy.deepcopy(model.state_dict()), model(x)
    small = compiled(model, [one], dynamic=dynamic)
    torch.testing.assert_close(small(x), expected)
    assert "batch_norm" not in called(seen[0])
    assert "conv2d" in called(seen[0])
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(small(images(5)), model(images(5)))


@torch.no_grad()
def test_what_is_not_folded_stays_as_it_was(seen):
    model, x = Net(), images(3)
    torch.testing.assert_close(compiled(model, ["optimize-graph"])(x), model(x))
    assert "batch_norm" in called(seen[0])
    assert "dropout" not in called(seen[0])


@torch.no_grad()
def test_the_answers_are_those_of_the_compressed_weights():
    model, x = Net(), images(3)
    small = compiled(model, [PostTrainingQuantize(4, 32)])
    rounded = copy.deepcopy(model)
    for layer in (rounded.conv, rounded.fc):
        step = layer.weight.flatten(1).abs().amax(1).reshape(-1, *[1] * (layer.weight.dim() - 1)) / 7
        layer.weight.copy_((layer.weight / step).round() * step)
    torch.testing.assert_close(small(x), rounded(x))
    assert not torch.allclose(small(x), model(x), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (LowRank(energy=0.1, skip=("conv",), keep=True), [(8, 1, 3, 3), (1, 8), (4, 1)]),
        (LowRank(energy=0.1, skip=("fc", "conv"), keep=True), [(8, 1, 3, 3), (4, 8)]),
        (PruneChannels(0.5), [(4, 1, 3, 3), (4, 4)]),
    ],
)
def test_layers_become_smaller_and_are_named_as_in_the_model(monkeypatch, one, expected):
    shapes = []

    def inner(name):
        return lambda graph_module, given: shapes.extend(tuple(each.shape) for each in given[:-1]) or graph_module

    monkeypatch.setattr("torch._dynamo.lookup_backend", inner)
    assert compiled(Net(), [one])(images(3)).shape == (3, 4)
    assert [shape for shape in shapes if len(shape) in (2, 4)] == expected


@torch.no_grad()
@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_weights_that_change_are_compressed_anew(inner):
    model, x = Net(), images(3)
    small = compiled(model, ["fuse"], inner=inner)
    small(x)
    model.fc.weight.mul_(2)  # in place, as an optimizer and load_state_dict do
    torch.testing.assert_close(small(x), model(x))
    model.norm.running_mean.add_(1)
    torch.testing.assert_close(small(x), model(x))
    model.conv.weight = nn.Parameter(model.conv.weight * 3)  # another tensor
    torch.testing.assert_close(small(x), model(x))
    model.fc.bias.data = model.fc.bias + 1
    torch.testing.assert_close(small(x), model(x))


@torch.no_grad()
def test_models_of_one_class_share_the_compiled_graph_and_not_the_weights(seen, monkeypatch):
    runs = []
    monkeypatch.setattr(backend, "run", lambda *args, **more: runs.append(args) or run(*args, **more))
    one, other, x = Net(0), Net(1), images(3)
    first, second = compiled(one, ["fuse"]), compiled(other, ["fuse"])
    for _ in range(2):
        torch.testing.assert_close(first(x), one(x))
        torch.testing.assert_close(second(x), other(x))
    assert len(seen) == 1
    assert len(runs) == 2


@torch.no_grad()
def test_weights_that_give_another_structure_are_compiled_again(seen):
    model, x = Net(), images(3)
    small = compiled(model, [LowRank(energy=0.999, keep=True, skip=("conv",))])
    torch.testing.assert_close(small(x), model(x), atol=0.1, rtol=0.1)
    model.fc.weight.copy_(torch.outer(torch.ones(4), torch.arange(8.0)))  # of rank 1
    torch.testing.assert_close(small(x), model(x), atol=1e-4, rtol=1e-4)
    assert len(seen) == 2


def untouched(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "chainfx.deploy.backend"]


def test_gradients_go_past_the_passes(seen, caplog):
    model, x = Net(), images(3)
    small = compiled(model, ["fuse"])
    small(x).sum().backward()
    assert model.conv.weight.grad.abs().sum() > 0
    assert "batch_norm" in called(seen[0])
    assert untouched(caplog) == [
        "chainfx leaves a graph of torch.compile as it is: gradients are recorded; compressed are graphs in "
        "torch.no_grad()."
    ]
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x))
    assert "batch_norm" not in called(seen[1])


@torch.no_grad()
def test_train_mode_goes_past_the_passes(seen, caplog):
    model, x = Net().train(), images(3)
    model.norm.eval()
    compiled(model, ["fuse"])(x)
    assert "batch_norm" in called(seen[0])
    assert untouched(caplog) == ["chainfx leaves a graph of torch.compile as it is: the model is in train mode."]


class Counting(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        return super().forward(x)


class Autocast(Net):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


@torch.no_grad()
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Counting, "'add_' changes a tensor that the model or the caller keeps"),
        (Autocast, "'_exit_autocast' is called for what it does besides"),
    ],
)
def test_what_has_no_train_form_goes_past_the_passes(seen, caplog, model, reason):
    model, x = model(), images(3)
    expected = model(x)
    torch.testing.assert_close(compiled(model, ["fuse"])(x), expected)
    assert "batch_norm" in called(seen[0])
    assert untouched(caplog) == [f"chainfx leaves a graph of torch.compile as it is: {reason}."]


REFUSED = [
    (
        {"passes": [Quantize(8, 8)]},
        PassError,
        "quantize: this pass needs data (calibration), which torch.compile does not have; call "
        "torch.compile(chainfx.compile(model, [...], example_inputs=..., calibration=[...], trainer=...)) instead.",
    ),
    (
        {},
        InputError,
        "backend 'chainfx' takes a list of passes and no mode, but passes is None; call torch.compile(model, "
        'backend="chainfx", options={"passes": ["fuse"]}).',
    ),
    ({"pass": []}, InputError, "backend 'chainfx' has no option 'pass'; use 'passes' and 'inner'."),
    (
        {"passes": ["fuse"], "inner": "gcc"},
        InputError,
        "inner is 'gcc'; give one of 'inductor', 'aot_eager', 'eager'.",
    ),
    ({"passes": [3]}, InputError, "3 is not a pass; give a pass, its name, or {name: {option: value}}."),
]


@pytest.mark.parametrize(("options", "kind", "text"), REFUSED)
def test_wrong_options_are_one_sentence(options, kind, text):
    with pytest.raises(kind) as caught:
        torch_backend(nn.Identity(), [], options=options)
    assert str(caught.value) == text


def test_a_mode_is_refused():
    with pytest.raises(InputError) as caught:
        torch_backend(nn.Identity(), [], mode="max-autotune")
    assert str(caught.value) == (
        "backend 'chainfx' takes a list of passes and no mode, but mode is 'max-autotune'; call torch.compile(model, "
        'backend="chainfx", options={"passes": ["fuse"]}).'
    )


@torch.no_grad()
def test_torch_compile_shows_the_sentence():
    with pytest.raises(
        torch._dynamo.exc.BackendCompilerFailed, match=r"quantize: this pass needs data \(calibration\)"
    ):
        compiled(Net(), ["quantize"])(images(3))


def test_the_entry_point_is_the_backend():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["torch_dynamo_backends"]
    assert declared == {"chainfx": f"{torch_backend.__module__}:{torch_backend.__qualname__}"}
    installed = [point for point in entry_points(group="torch_dynamo_backends") if point.name == "chainfx"]
    assert all(point.load() is torch_backend for point in installed)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("dynamic", [None, True])
def test_inductor_gives_the_same_answers(dynamic):
    model, x = Net(), images(3)
    small = compiled(model, ["fuse", "optimize-graph"], inner="inductor", dynamic=dynamic)
    for count in (3, 5, 1):
        torch.testing.assert_close(small(images(count)), model(images(count)), atol=1e-5, rtol=1e-5)
    model.fc.weight.mul_(2)
    torch.testing.assert_close(small(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "made", "same"),
    [
        ([100.0, 0.0], [100.0, 0.09], True),  # a thousandth of the largest answer, as float32 may differ
        ([100.0, 0.0], [100.0, 0.2], False),
        ([0.01, 0.0], [0.01, 0.09], False),
        ([math.nan, math.inf], [math.nan, math.inf], True),
        ([math.nan, 1.0], [0.0, 1.0], False),
    ],
)
def test_a_train_form_gives_the_answers_of_the_graph_up_to_rounding(given, made, same):
    source = SimpleNamespace(concrete=list, train_form=lambda _: lambda *_: (torch.tensor(made),), inputs=[0])
    with contextlib.nullcontext() if same else pytest.raises(CaptureError) as caught:
        backend._check_faithful(lambda *_: (torch.tensor(given),), source, [torch.zeros(1)])
    assert same or str(caught.value) == "its train form gives other answers"
