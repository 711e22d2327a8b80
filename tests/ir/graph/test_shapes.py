"""Shapes without data: rules against what torch itself says, equal work done once, and counting a module as it is."""

import copy
import logging
import operator
from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import symbolic_trace
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import chainfx
from chainfx.bitops import count as count_graph
from chainfx.errors import CaptureError, InputError
from chainfx.ir.capture.ways import capture, capture_to_read
from chainfx.ir.graph.meta_values import MetaEvaluator, evaluate_graph
from chainfx.ir.graph.operators import name_of
from chainfx.ir.graph.running import called
from chainfx.ir.graph.shapes import propagate_shapes, shape_of
from tests.bitops.graphs import graph_of
from tests.budget import mostly_slow
from tests.ir.capture.test_capture_models import on_meta

IMAGE = (torch.empty(2, 6, 12, 10),)


def kinds(graph_module):
    return [
        [(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf for leaf in tree_leaves(value)]
        for value in (node.meta["val"] for node in graph_module.graph.nodes)
    ]


def check_against_torch(graph_module, inputs):
    propagate_shapes(graph_module, inputs)
    found = kinds(graph_module)
    FakeTensorProp(graph_module, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*inputs)
    for ours, theirs in zip(found, kinds(graph_module), strict=True):
        known = [one if other is None and type(one) is int else other for one, other in zip(ours, theirs, strict=True)]
        assert ours == known  # torch 2.9 records None for a size


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"stride": (3, 1), "padding": (0, 2), "dilation": (2, 1)},
        {"groups": 3},
        {"padding": "same", "dilation": 2},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
def test_convolutions_have_the_shapes_that_torch_gives_them(options, bias):
    check_against_torch(capture(nn.Conv2d(6, 9, 3, bias=bias, **options), IMAGE), IMAGE)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2), (2, 4, 9)),
        (nn.Conv3d(4, 6, (1, 2, 3), padding=1), (2, 4, 5, 6, 7)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5, 6)),
        (nn.Conv2d(4, 6, 3), (4, 9, 9)),
        (nn.Linear(4, 6), (4,)),
        (nn.Linear(4, 6), (2, 3, 5, 4)),
        (nn.LSTM(4, 6, bidirectional=True), (5, 2, 4)),
        (nn.MultiheadAttention(8, 2), None),
    ],
)
def test_layers_have_the_shapes_that_torch_gives_them(layer, shape):
    inputs = (torch.empty(shape),) if shape else (torch.empty(5, 2, 8),) * 3
    check_against_torch(capture(layer, inputs), inputs)


FLOAT, WIDE, COLUMN, WHOLE = torch.empty(3, 4), torch.empty(2, 3, 4), torch.empty(3, 1), torch.zeros(3, 4).long()


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda x, y: x + y, (FLOAT, FLOAT)),
        (lambda x, y: x * y, (FLOAT, COLUMN)),
        (lambda x, y: x * y, (COLUMN, FLOAT)),
        (lambda x, y: x - y, (FLOAT, WIDE)),
        (lambda x, y: x / y, (WHOLE, WHOLE)),
        (lambda x, y: x + y, (WHOLE, FLOAT)),
        (lambda x, y: x + y, (FLOAT, FLOAT.double())),
        (lambda x, y: torch.add(x, y, alpha=2), (FLOAT, FLOAT)),
        (lambda x: (x * 1, x * 1.0, x * True, x / 2, 2 - x), (WHOLE,)),
        (lambda x: (x * 1, x * 1.0, x * True, x / 2, 2 - x), (FLOAT.half(),)),
        (lambda x: x * 1j, (FLOAT,)),
        (lambda x, y: torch.cat([x, y]), (FLOAT, FLOAT)),
        (lambda x, y: torch.cat([x, y], dim=-1), (FLOAT, COLUMN)),
        (lambda x, y: torch.cat((x, y), 1), (WHOLE, FLOAT)),
        (lambda x, y: torch.cat((x, y.t()), axis=0), (FLOAT, torch.empty(4, 3))),
        (lambda x, y: torch.cat((x, y), 1), (FLOAT, torch.empty(0))),
        (lambda x, y: torch.mul(x, other=y), (FLOAT, FLOAT)),
        (lambda x, y: F.linear(input=x, weight=y), (FLOAT, torch.empty(5, 4))),
        (lambda x, y: F.linear(x, y, None), (FLOAT, torch.empty(4))),
        (lambda x, y: F.conv1d(input=x, weight=y, padding=1), (WIDE, torch.empty(5, 3, 3))),
        (lambda x, y: F.conv1d(x, y, stride=2), (WIDE, torch.empty(5, 3, 3))),
        (lambda x: torch.roll(x, 1, 0), (FLOAT,)),
        (lambda x: F.gelu(F.layer_norm(F.relu(x), (4,))), (FLOAT,)),
        (lambda x: [x.chunk(2, dim=1)[index].sum(0) for index in (0, 1)], (FLOAT,)),
        (lambda x: x.shape[0] * x.transpose(0, 1).reshape(-1, x.size(0)), (FLOAT,)),
        (lambda x: x[:, None].expand(-1, 5, -1).mean(dim=(0, 1)), (FLOAT,)),
    ],
)
def test_calls_have_the_shapes_that_torch_gives_them(function, inputs):
    check_against_torch(symbolic_trace(function), inputs)


LAYOUTS = {
    "channels first": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "rows last": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "with gaps": lambda x: torch.cat((x, x), dim=1)[:, ::2],
}


@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_calls_have_the_layouts_that_torch_gives_them(first, second):
    def network(x, y, weight, one):
        sums = x + y, x - y[:1], x[:, :1] * y, x * y[0, :, :1, :1], y[0, :, :1, :1] / x, 2 * x, x + 1.0
        whole = F.conv2d(x, weight, None, (2, 2), (1, 1), (1, 1), 1)
        return *sums, whole, F.conv2d(y, one, None, (1, 1), (0, 0), (1, 1), 6), F.adaptive_avg_pool2d(x, 3)

    images = LAYOUTS[first](torch.randn(2, 6, 5, 4)), LAYOUTS[second](torch.randn(2, 6, 5, 4))
    inputs = *images, torch.randn(6, 6, 2, 2), torch.randn(6, 1, 2, 2)
    graph_module = symbolic_trace(network)
    propagate_shapes(graph_module, inputs)
    (output,) = graph_module.graph.find_nodes(op="output")
    for node, value in zip(output.args[0], network(*inputs), strict=True):
        assert (node.meta["val"].shape, node.meta["val"].stride()) == (value.shape, value.stride()), node


RESIZED = [
    {"size": 5},
    {"size": (3, 11), "align_corners": True},
    {"scale_factor": 1.51},
    {"scale_factor": (0.7, 2.0), "recompute_scale_factor": True},
    {"scale_factor": 2, "antialias": True},
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", mostly_slow(["bilinear", "bicubic"], ["bilinear"]))
def test_resized_images_have_the_shapes_and_layouts_that_torch_gives_them(mode, layout):
    def network(x):
        return [F.interpolate(x, mode=mode, **options) for options in RESIZED]

    images = LAYOUTS[layout](torch.randn(2, 6, 5, 4))
    graph_module = symbolic_trace(network)
    propagate_shapes(graph_module, (images,))
    (output,) = graph_module.graph.find_nodes(op="output")
    assert [laid_out(node.meta["val"]) for node in output.args[0]] == [laid_out(value) for value in network(images)]


def laid_out(value):
    return [(tuple(leaf.shape), leaf.stride(), leaf.dtype) for leaf in tree_leaves(value)]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("shape", [(7, 3, 5), (7, 5), (1, 3, 5), (7, 1, 5)], ids=str)
@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM, partial(nn.LSTM, proj_size=2)])
def test_recurrent_layers_give_what_they_give_with_data(layer, shape):
    for layers, batch_first, bidirectional in [(1, False, True), (2, True, True), (2, True, False)]:
        network = layer(5, 4, layers, batch_first=batch_first, bidirectional=bidirectional)
        recurrent = symbolic_trace(nn.Sequential(network))
        propagate_shapes(recurrent, (torch.empty(shape),))
        (call,) = recurrent.graph.find_nodes(op="call_module", target="0")
        assert laid_out(call.meta["val"]) == laid_out(network(torch.randn(shape)))


def test_the_length_of_a_sequence_costs_nothing():
    class Calls(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            Calls.number += 1
            return function(*args, **(kwargs or {}))

    recurrent, numbers = symbolic_trace(nn.Sequential(nn.GRU(5, 4))), []
    for length in (2, 200):
        Calls.number = 0
        with Calls():
            propagate_shapes(recurrent, (torch.empty(length, 3, 5),))
        numbers.append(Calls.number)
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nn.Conv2d(6, 9, 3), (2, 5, 12, 10)),
        (nn.Conv2d(6, 8, 3, groups=2), (2, 3, 12, 10)),
        (nn.Conv2d(6, 9, 13), (2, 6, 12, 10)),
        (nn.Linear(6, 9), (2, 5)),
    ],
)
def test_what_does_not_fit_is_an_error(network, shape):
    accepted = (torch.empty(2, 6, 16, 16),) if network.weight.dim() == 4 else (torch.empty(2, 6),)
    graph_module = capture(network, accepted)
    for counted in (graph_module, network):
        with pytest.raises(InputError, match=r"does not accept example_inputs of shape \(2, "):
            chainfx.count(counted, torch.empty(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16])
def test_an_image_of_another_dtype_than_the_weights_is_an_error(dtype):
    image = torch.zeros(2, 6, 12, 10, dtype=dtype)
    for counted in (nn.Conv2d(6, 9, 3), capture(nn.Conv2d(6, 9, 3), IMAGE)):
        with pytest.raises(InputError, match=r"does not accept example_inputs of shape \(2, 6, 12, 10\)"):
            chainfx.count(counted, image)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_numbers_of_another_dtype_than_a_linear_weight_are_an_error(device):
    words, layer = torch.zeros(2, 6, dtype=torch.int64, device=device), nn.Linear(6, 9, device=device)
    message = (
        "a linear layer with a weight of torch.float32 is given torch.int64, which torch does not multiply; "
        "give inputs of the dtype that the network was made for."
    )
    with pytest.raises(InputError) as caught:
        chainfx.count(capture(layer, (words.float(),)), words)
    assert str(caught.value) == message
    with pytest.raises(InputError) as caught:
        chainfx.count(layer, words)
    assert str(caught.value) == message or (
        device == "cpu" and "mat1 and mat2 must have the same dtype" in str(caught.value)
    )


def test_tensors_that_do_not_fit_together_are_an_error():
    for function in (lambda x, y: torch.cat([x, y]), lambda x, y: x + y):
        with pytest.raises(InputError, match=r"does not accept example_inputs of shape \(3, 4\), \(3, 5\)"):
            propagate_shapes(symbolic_trace(function), (FLOAT, torch.empty(3, 5)))
    with pytest.raises(InputError, match=r"does not accept example_inputs of shape \(3, 4\), \(3,\)"):
        propagate_shapes(symbolic_trace(lambda x, y: x * y), (FLOAT, torch.empty(3)))
    in_place = symbolic_trace(lambda x, y: x + y)
    in_place.graph.find_nodes(op="call_function", target=operator.add)[0].target = operator.iadd
    with pytest.raises(InputError, match=r"does not accept example_inputs of shape \(3, 1\), \(3, 4\)"):
        propagate_shapes(in_place, (COLUMN, FLOAT))


def test_a_shape_changed_in_place_is_seen_by_what_comes_later():
    def network(x):
        left, right = x + 1, x + 1  # alike, and like x
        left.unsqueeze_(0)
        return left.sum(0), right.sum(0), x.sum(0)

    graph_module = symbolic_trace(network)
    propagate_shapes(graph_module, (FLOAT,))
    results = graph_module.graph.find_nodes(op="output")[0].meta["val"]
    assert [tensor.shape for tensor in results] == [(3, 4), (4,), (4,)]


def test_equal_blocks_are_computed_once():
    def block():
        return nn.TransformerEncoderLayer(8, 2, 16)

    inputs = (torch.empty(5, 2, 8),)
    calls = []
    for depth in (1, 6):
        graph_module = capture(nn.Sequential(*(block() for _ in range(depth))), inputs)
        with mock.patch.object(MetaEvaluator, "_run", autospec=True, side_effect=MetaEvaluator._run) as run:
            propagate_shapes(graph_module, inputs)
        calls.append(run.call_count)
    assert calls[0] == calls[1] > 0


def test_equal_networks_are_computed_for_each_shape():
    graph_module = capture(nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), IMAGE)
    for size in (8, 12):
        propagate_shapes(graph_module, (torch.empty(1, 3, size, size),))
        assert shape_of(graph_module.graph.find_nodes(op="output")[0]) == (1, 3 * (size // 2) ** 2)


def test_a_default_of_an_input_is_its_value():
    def network(x, scale=3):
        return x.expand(scale, -1, -1)

    graph_module = symbolic_trace(network)
    propagate_shapes(graph_module, (FLOAT,))
    assert shape_of(graph_module.graph.find_nodes(op="call_method")[0]) == (3, 3, 4)


class OnlyMeta(TorchDispatchMode):
    """Refuses every operation that gives data."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        assert all(tensor.is_meta or tensor.numel() == 0 for tensor in made), func
        return result


NETWORK = nn.Sequential(
    nn.Conv2d(3, 8, 3),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.Flatten(2),
    nn.TransformerEncoderLayer(36, 4, 8),
    nn.LSTM(36, 4),
)


def test_counting_a_module_touches_no_data_and_changes_nothing():
    network = copy.deepcopy(NETWORK).train()
    network[1].eval()
    before = {name: (tensor, tensor.clone()) for name, tensor in network.state_dict(keep_vars=True).items()}
    image = torch.empty(2, 3, 8, 8)
    with OnlyMeta():
        report = chainfx.count(network, image)
    assert report.macs > 0
    after = network.state_dict(keep_vars=True)
    assert all(after[name] is tensor and torch.equal(tensor, value) for name, (tensor, value) in before.items())
    assert [module.training for module in network.modules()] == [
        module is not network[1] for module in network.modules()
    ]


def test_a_module_on_the_meta_device_counts_without_being_allocated():
    with torch.device("meta"):
        network = nn.TransformerEncoderLayer(2**16, 8, 2**20, batch_first=True)
    report = chainfx.count(network, torch.empty(1, 4, 2**16))
    assert report.parameters > 10**11
    assert report.macs == 4 * (4 * 2**32 + 2 * 2**36) + 2 * 4 * 4 * 2**16
    assert all(tensor.is_meta for tensor in network.state_dict().values())


MODELS = (
    "resnet18",
    "mobilenet_v3_small",
    "densenet121",
    "vit_b_32",
    "swin_t",
    "convnext_tiny",
    "shufflenet_v2_x0_5",
    "googlenet",
    "efficientnet_b0",
    "lraspp_mobilenet_v3_large",
)


def without_spelling(report):
    """A report in which ``Conv2d`` and ``conv2d`` are one operator, and ``mul_1`` and ``mul_2`` one name.

    A captured graph numbers the arithmetic on the batch too.
    """
    return replace(report, rows=tuple(map(without_numbers, report.rows)))


def without_numbers(row):
    node = row.node if row.macs else row.node.rstrip("_0123456789")
    return replace(row, operator=name_of(row.operator), node=node)


@pytest.mark.parametrize("name", mostly_slow(MODELS, ("mobilenet_v3_small", "shufflenet_v2_x0_5", "vit_b_32")))
def test_a_module_counts_as_its_captured_graph(name):
    model, image = on_meta(name), torch.empty(1, 3, 224, 224)
    report = chainfx.count(model, image)
    captured = count_graph(capture(model, (image.to("meta"),)), (image,))
    assert without_spelling(report) == without_spelling(captured)
    assert report.macs > 0
    assert not report.uncounted


@pytest.mark.parametrize("convention", ["strict", "hawq_v3", "uniq_bops"])
def test_a_module_counts_as_its_captured_graph_under_other_conventions(convention):
    network, image = copy.deepcopy(NETWORK), torch.empty(2, 3, 8, 8)
    report = chainfx.count(network, image, convention)
    assert without_spelling(report) == without_spelling(count_graph(capture(network, (image,)), (image,), convention))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_sizes_of_a_graph_to_read_are_those_of_the_inputs(batch):
    model, inputs = on_meta("vit_b_32"), (torch.empty(batch, 3, 224, 224, device="meta"),)
    graph_module = capture_to_read(model, inputs)
    with mock.patch("chainfx.ir.graph.shapes.evaluate_graph", side_effect=AssertionError("computed again")):
        propagate_shapes(graph_module, inputs)
    (output,) = graph_module.graph.find_nodes(op="output")
    assert shape_of(output.args[0]) == (batch, 1000)
    assert graph_module.get_submodule("encoder.ln") is model.encoder.ln
    with pytest.raises(NotImplementedError):
        graph_module(*inputs)


def test_a_layer_with_a_hook_or_a_forward_of_its_own_is_followed():
    def doubled(module, args, output):
        return output @ output.transpose(-1, -2)

    plain, hooked, own = (nn.Linear(4, 4, bias=False) for _ in range(3))
    hooked.register_forward_hook(doubled)
    own.forward = lambda x: F.linear(x, own.weight) + F.linear(x, own.weight)
    image = torch.empty(1, 3, 4)
    assert [chainfx.count(nn.Sequential(layer), image).macs for layer in (plain, hooked, own)] == [48, 48 + 36, 96]


class BySize(nn.Module):
    """Takes another way where a size is no number."""

    def __init__(self):
        super().__init__()
        self.narrow, self.wide = nn.Linear(4, 2), nn.Linear(8, 2)

    def forward(self, x):
        return self.narrow(x) if isinstance(x.shape[-1], int) else self.wide(x)


def test_sizes_are_numbers_to_the_code_of_a_module():
    assert [row.module for row in chainfx.count(BySize(), torch.empty(1, 4)).rows] == ["narrow"]


class Flat(nn.Module):
    def forward(self, x):
        return x.reshape(x.size(0), x.numel() // x.size()[0]).unsqueeze(x.dim() - 1)


def test_sizes_are_known_without_a_call_that_is_forgotten_again():
    with mock.patch("chainfx.ir.capture.sizes.SizesTracer._forget", side_effect=AssertionError("recorded a call")):
        graph_module = capture_to_read(Flat(), (torch.empty(2, 3, 4),))
    assert graph_module is not None
    assert [node.name for node in graph_module.graph.nodes] == ["x", "reshape", "unsqueeze", "output"]
    (output,) = graph_module.graph.find_nodes(op="output")
    assert shape_of(output.args[0]) == (2, 12, 1)


def test_what_no_way_follows_is_the_error_of_capture():
    class DataDependent(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return x * self.weight if float(x.sum()) > 0 else x

    assert capture_to_read(DataDependent(), (torch.empty(1, 4),)) is None
    with pytest.raises(CaptureError, match="needs a value that only the data give"):
        chainfx.count(DataDependent(), torch.empty(1, 4))


def test_dropout_by_the_mode_counts_as_in_eval_mode():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(F.dropout(x, training=self.training)) if self.training else self.head(x)

    assert chainfx.count(Functional().train(), torch.empty(1, 4)).macs == 8


def test_a_graph_of_weights_alone_has_shapes():
    graph_module = graph_of(lambda x, weight: x @ (weight * 2).t(), weight=torch.zeros(5, 4))
    check_against_torch(graph_module, (FLOAT,))


def test_inputs_of_another_shape_are_one_sentence_and_nothing_on_the_error_stream(capfd, caplog):
    caplog.set_level(logging.WARNING)
    graph_module = capture(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)).eval(), (torch.zeros(1, 8),))
    with pytest.raises(InputError) as caught:
        propagate_shapes(graph_module, (torch.zeros(1, 9),))
    assert str(caught.value) == (
        "the network does not accept example_inputs of shape (1, 9): a and b must have same reduction dim, but got "
        "[1, 9] X [8, 16]; give inputs of the shape it was made for."
    )
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        called(graph_module, torch.zeros(1, 9))
    assert capfd.readouterr().err == "" and [each for each in caplog.records if each.levelno >= logging.WARNING] == []
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        graph_module(torch.zeros(1, 9))
    assert "Call using an FX-traced Module" in capfd.readouterr().err  # what torch.fx says of a plain call


def test_a_view_has_its_sizes_whatever_the_strides_without_data():
    x = torch.empty(2, 3)
    values = evaluate_graph(symbolic_trace(lambda x: x.t().view(-1)), (x,))
    assert [tuple(value.shape) for node, value in values.items() if node.name == "view"] == [(6,)]
    with pytest.raises(RuntimeError):
        evaluate_graph(symbolic_trace(lambda x: x.view(4)), (x,))
