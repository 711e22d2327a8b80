import copy
import itertools

import pytest
import torch
from hypothesis import given
from torch import nn

import chainfx
from chainfx import zoo
from chainfx.deploy import CompressedModel, Machine
from chainfx.deploy.integers.grids import Encode
from chainfx.deploy.integers.layers import IntegerLayer, IntegerMaxPool
from chainfx.errors import ChainfxError
from chainfx.ir.graph import edit, ops
from chainfx.passes import EarlyExit, PassContext, PruneWeights, Quantize
from tests.budget import examples
from tests.deploy.integers.nets import NARROW, distance, on_integers, quantized, rows_of, run
from tests.deploy.integers.reference import compared
from tests.nets import graph_of, images, small_resnet, warm
from tests.strategies import plans

NEAR = 0.01
"""How far an answer may be from float64's: a code next to a tie may fall to the other side."""

pytestmark = pytest.mark.skipif(not Machine.here().kernels, reason="this machine has no integer kernels")


def block(*layers):
    torch.manual_seed(0)
    return warm(nn.Sequential(*layers))


def image(channels=3, size=9, count=4):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_a_residual_network_hands_codes_from_layer_to_layer():
    x = images(8, 16)
    small, graph_module = on_integers(small_resnet(width=8), x)
    engines = [row.engine for row in small.lowering]
    assert engines.count("int8") == 12 and engines.count("float") == 1
    assert rows_of(small)["stages.0.0.conv2"] == ("int8", "with BatchNorm2d, add, quantize_activation")
    assert rows_of(small)["pool"] == ("float", "it has no integer form")
    seen = compared(small, x)
    assert seen.layers == 11 and seen.codes > 50_000 and seen.is_exact
    assert distance(run(small, x), run(copy.deepcopy(graph_module).double(), x.double())) < 1e-5


@pytest.mark.parametrize(
    "layers",
    [
        [
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8, padding=1),
            nn.Conv2d(8, 4, 1),
        ],
        [
            nn.Conv2d(3, 6, 5, padding=(2, 1), dilation=2),
            nn.BatchNorm2d(6),
            nn.Hardswish(),
            nn.Conv2d(6, 4, 3, groups=2),
        ],
        [
            nn.Conv2d(3, 7, 7, stride=2, padding=3),
            nn.BatchNorm2d(7),
            nn.ReLU6(),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(7, 5, 1),
        ],
        [nn.Conv2d(3, 8, 1), nn.SiLU(), nn.Conv2d(8, 4, 3), nn.Hardtanh(-0.5, 0.3), nn.Conv2d(4, 4, 1)],
        [nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(256, 6), nn.ReLU(), nn.Linear(6, 3)],
        [nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)],
    ],
)
@pytest.mark.parametrize("bits", [(7, 8), (1, 8), (3, 4), (2, 2), (7, 1)])
def test_every_output_code_is_that_of_the_definition(layers, bits):
    x = image()
    one = Quantize(*bits, first=None, last=None, scheme="uniform")
    small, graph_module = on_integers(block(*copy.deepcopy(layers)), x, one=one)
    seen = compared(small, x)
    assert seen.layers == sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in layers)
    assert seen.is_exact, seen
    assert distance(run(small, x), run(copy.deepcopy(graph_module).double(), x.double())) < NEAR


def test_batchnorms_with_negative_and_zero_scales_are_folded_exactly():
    model = block(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 0.0, 0.5, -0.1, 3.0]))
    x = image()
    small, graph_module = on_integers(model, x)
    assert compared(small, x).is_exact
    assert distance(run(small, x), run(copy.deepcopy(graph_module).double(), x.double())) < 1e-5


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [*itertools.product(["dorefa", "tanh", "uniform"], range(1, 8)), *(("exponential", bits) for bits in (2, 3, 4))],
)
def test_every_width_and_scheme_of_weights_maps_to_integers(scheme, bits):
    x = image()
    one = Quantize(bits, 7 if bits == 7 else 8, first=None, last=None, scheme=scheme, granularity="tensor")
    small, graph_module = on_integers(block(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), x, one=one)
    seen = compared(small, x)
    assert seen.layers == 2 and seen.is_exact
    assert distance(run(small, x), run(copy.deepcopy(graph_module).double(), x.double())) < NEAR


def test_masked_weights_are_zero_in_integers_too():
    x = image()
    graph_module = graph_of(block(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), x)
    context = PassContext(graph_module, (x,), calibration=[(x,)])
    PruneWeights(0.5).apply(graph_module, context)
    Quantize(3, 8, first=None, last=None, scheme="dorefa").apply(graph_module, context)
    chainfx.ir.graph.verify(graph_module, (x,))
    small = CompressedModel(graph_module.eval(), (x,), None, engine="int8", machine=NARROW)
    layers = [module for module in small.segments.modules() if isinstance(module, IntegerLayer)]
    assert [float((layer.weight == 0).float().mean()) for layer in layers] == pytest.approx([0.5, 0.5], abs=0.02)
    assert compared(small, x).is_exact
    assert distance(run(small, x), run(copy.deepcopy(graph_module).double(), x.double())) < 1e-5


class Branches(nn.Module):
    """Two branches are joined, pooled and flattened; the second also reads what the first one quantizes."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 3, padding=1)
        self.fc = nn.Linear(10 * 9, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], dim=1)
        return self.fc(nn.functional.max_pool2d(y, 2).flatten(1))


def test_concatenation_pooling_and_flattening_work_on_codes():
    torch.manual_seed(0)
    x = image(size=8)
    small, graph_module = on_integers(Branches().eval(), x)
    assert {name: engine for name, (engine, _) in rows_of(small).items()} == dict.fromkeys(
        ["stem", "a", "b", "cat_1", "max_pool2d_1", "flatten_1", "fc"], "int8"
    )
    assert any(isinstance(module, IntegerMaxPool) for module in small.segments.modules())
    seen = compared(small, x)
    assert seen.layers == 4 and seen.is_exact
    assert distance(run(small, x), run(copy.deepcopy(graph_module).double(), x.double())) < 1e-5


@pytest.mark.parametrize("spelling", ["view", "reshape", "flatten"])
def test_images_become_vectors_whatever_their_layout(spelling):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc, self.side = nn.Conv2d(3, 4, 3), nn.Linear(196, 5), nn.Linear(196, 2)

        def forward(self, x):
            y = torch.relu(self.conv(x))
            shape = () if spelling == "flatten" else (x.shape[0], -1)
            y = y.flatten(1) if spelling == "flatten" else getattr(y, spelling)(*shape)
            return self.fc(y), self.side(torch.sigmoid(y))

    torch.manual_seed(0)
    x = image()
    small, graph_module = on_integers(Flat().eval(), x)
    assert compared(small, x).is_exact
    for answer, expected in zip(run(small, x), run(copy.deepcopy(graph_module).double(), x.double()), strict=True):
        assert distance(answer, expected) < NEAR


def test_a_tensor_that_is_read_later_is_not_written_over():
    """The last block of a stage: its sum goes to two layers of the next, and the skip tensor to a head besides."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
            self.stem = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            y = torch.relu(self.a(x) + x)
            return self.b(y), self.c(x)

    torch.manual_seed(0)
    x = image()
    one = Quantize(7, 8, first=None, last=None, scheme="uniform")
    small, graph_module = on_integers(Shared().eval(), x, one=one)
    layers = {name: module for name, module in small.segments.named_modules() if isinstance(module, IntegerLayer)}
    assert not any(layer.overwrites for layer in layers.values())
    for given_, expected in zip(run(small, x), run(copy.deepcopy(graph_module).double(), x.double()), strict=True):
        assert distance(given_, expected) < 1e-5


def test_an_input_of_the_network_is_not_written_over():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x, y):
            return self.conv(x) + y

    torch.manual_seed(0)
    x, y = image(), (image() * 2).contiguous(memory_format=torch.channels_last)
    small, graph_module = on_integers(Two().eval(), x, y)
    kept = y.clone()
    assert distance(run(small, x, y), run(copy.deepcopy(graph_module).double(), x.double(), y.double())) < 1e-5
    assert torch.equal(y, kept)


def test_an_activation_that_clips_below_the_quantizer_stays():
    x = image()
    model = block(nn.Conv2d(3, 8, 3), nn.Hardtanh(0.0, 0.25), nn.Conv2d(8, 4, 3))
    graph_module = quantized(model, x)
    _, quantizer = graph_module.graph.find_nodes(op="call_function", target=ops.quantize_activation)
    edit.set_tensor(graph_module, str(quantizer.args[1].target), torch.tensor(2.0))
    small = CompressedModel(graph_module, (x,), None, engine="int8", machine=NARROW)
    assert compared(small, x).is_exact
    assert distance(run(small, x), run(copy.deepcopy(graph_module).double(), x.double())) < NEAR


def test_the_last_reader_of_a_skip_tensor_may_write_over_it():
    x = images(4, 16)
    small, _ = on_integers(small_resnet(width=8), x)
    layers = {name: module for name, module in small.segments.named_modules() if isinstance(module, IntegerLayer)}
    overwriting = [name.rpartition("integer_")[2] for name, layer in layers.items() if layer.overwrites]
    assert overwriting == ["stages_0_0_conv2", "stages_0_1_conv2", "stages_1_0_conv2", "stages_1_1_conv2"]
    assert torch.equal(run(small, x), run(small, x))


def test_what_is_encoded_is_written_over_where_a_layer_made_it_and_nobody_else_reads_it():
    x = images(4, 16)
    kept = x.clone()
    small, _ = on_integers(small_resnet(width=8), x)
    encoders = {name: one for name, one in small.segments.named_modules() if isinstance(one, Encode)}
    written = {name.rpartition("encode_")[2]: one.overwrites for name, one in encoders.items()}
    assert written == {"x": False, "integer_stages_1_0_conv2": True, "pool": False}
    answers = run(small, x)
    assert torch.equal(x, kept) and torch.equal(run(small, x), answers)


@examples(1)
@given(plan=plans())
def test_random_networks_are_exact_layer_by_layer(plan):
    torch.manual_seed(0)
    inputs = tuple(x.float() if x.is_floating_point() else x for x in plan.inputs())
    try:
        graph_module = quantized(warm(plan.build().float()), *inputs)
    except ChainfxError:
        return
    small = CompressedModel(graph_module, inputs, None, machine=NARROW)
    if small.engine == "int8":
        answers, seen = run(small, *inputs), compared(small, *inputs)
        assert seen.is_exact
        exact = run(copy.deepcopy(graph_module).double(), *(x.double() if x.is_floating_point() else x for x in inputs))
        assert len(answers) == len(exact)


@pytest.mark.parametrize(
    "make",
    [
        lambda: zoo.vgg((1, 1, 1, 1, 1), width=8),
        lambda: zoo.mobilenet_v2(width=0.25),
        lambda: zoo.resnet((1, 1, 1), width=8, shortcut="A", in_channels=3),
    ],
)
def test_zoo_networks_are_exact_layer_by_layer(make):
    torch.manual_seed(0)
    x = images(2, 32, 3)
    small, graph_module = on_integers(warm(make()), x)
    assert compared(small, x).is_exact
    assert distance(run(small, x), run(copy.deepcopy(graph_module).double(), x.double())) < NEAR


def test_exits_read_values_and_segments_carry_codes():
    x = images(16, 16)
    graph_module = quantized(small_resnet((2, 2), width=8), x)
    EarlyExit(exits=1).apply(graph_module, PassContext(graph_module, (x,), calibration=[(x,)], tunes=True))
    chainfx.ir.graph.verify(graph_module, (x,))
    small = CompressedModel(graph_module.eval(), (x,), None, engine="int8", machine=NARROW)
    assert len(small.segments) == 2
    assert compared(small, x).is_exact
    assert {row.engine for row in small.lowering if row.operator in ("conv2d", "linear")} == {"int8"}
