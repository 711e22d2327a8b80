"""Depthwise convolutions in train form: their groups are those of the weight, and nothing has to be rewritten."""

import copy
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainfx
from chainfx.ir.capture.export import export_trace
from chainfx.ir.capture.ways import capture
from chainfx.ir.channels.analyse import analyse_channels
from chainfx.ir.channels.surgery import prune
from chainfx.ir.graph import ops
from chainfx.ir.graph.depthwise import DEPTHWISE, depthwise_conv2d
from chainfx.passes import Fuse, LowRank, PassContext, Quantize
from tests.nets import graph_of, warm

LAYERS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def separable(rank, **options):
    """Pointwise, depthwise, norm, pointwise, and an input for them."""
    torch.manual_seed(0)
    conv = LAYERS[rank]
    depthwise = conv(8, 8, 3, padding=1, groups=8, **options)
    model = nn.Sequential(conv(2, 8, 1), depthwise, NORMS[rank](8), nn.ReLU(), conv(8, 3, 1)).double()
    return warm(model), torch.randn(2, 2, *(6, 5, 4)[:rank], dtype=torch.float64)


def targets(graph_module):
    return [node.target for node in graph_module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("rank", LAYERS)
@pytest.mark.parametrize("options", [{}, {"stride": 2, "bias": False}, {"dilation": 2, "padding_mode": "reflect"}])
def test_one_filter_a_channel_is_one_call_without_groups(rank, options):
    model, x = separable(rank, **options)
    graph_module = capture(model, (x,))
    [node] = graph_module.graph.find_nodes(op="call_function", target=list(DEPTHWISE.values())[rank - 1])
    assert (node.name, len(node.args), node.kwargs) == ("_1", 6, {})
    assert torch.equal(graph_module(x), model(x))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(1, 1, 3),
        nn.ConvTranspose2d(4, 4, 3, groups=4),
    ],
    ids=["two filters a channel", "two groups", "one channel", "transposed"],
)
def test_other_groups_stay_numbers(layer):
    x = torch.randn(1, layer.in_channels, 5, 5)
    graph_module = capture(layer, (x,))
    [node] = [node for node in graph_module.graph.nodes if node.op == "call_function"]
    assert node.target in (F.conv2d, F.conv_transpose2d)
    assert node.args[6] == layer.groups


def test_pruning_rewrites_nothing():
    model, x = separable(2)
    graph_module = graph_of(model, x)
    pruned, code = copy.deepcopy(graph_module), graph_module.code
    analysis = analyse_channels(pruned, (x,))
    assert [(each.node, each.kind) for each in analysis.literals] == [("_2", "attribute")]
    prune(pruned, analysis, {"_0": [0, 3, 5]})
    assert pruned.get_parameter("1.weight").shape == (3, 1, 3, 3)
    assert pruned.code == code
    with torch.no_grad():
        for unit in (1, 2, 4, 6, 7):
            graph_module.get_parameter("4.weight")[:, unit] = 0
    torch.testing.assert_close(pruned(x), graph_module(x), rtol=1e-12, atol=1e-12)


def test_a_wrong_number_of_channels_is_refused():
    with pytest.raises(RuntimeError, match="expected input"):
        depthwise_conv2d(torch.zeros(1, 6, 5, 5), torch.zeros(3, 1, 3, 3), None, (1, 1), (0, 0), (1, 1))


def test_captured_again_exported_and_compiled_it_is_the_same():
    model, x = separable(2)
    graph_module = capture(model, (x,))
    assert capture(graph_module, (x,)).code == graph_module.code
    for other in (
        torch.fx.symbolic_trace(graph_module),
        torch.export.export(graph_module, (x,), strict=False).module(),
        torch.compile(graph_module, fullgraph=True, backend="aot_eager"),
    ):
        torch.testing.assert_close(other(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_trace_by_export_has_the_same_form():
    model, x = separable(2)
    trace = export_trace(model, ("x",), (x,), (), strict=False)
    assert trace.graph.find_nodes(op="call_function", target=depthwise_conv2d)


def test_it_is_counted_as_the_convolution_it_is():
    model, x = separable(2)
    report = chainfx.count(capture(model, (x,)), x)
    [row] = [row for row in report.rows if row.node == "_1"]
    assert (row.operator, row.macs) == ("conv2d", 8 * 9 * 6 * 5)
    assert report.macs == chainfx.count(model, x).macs


class Masked(nn.Module):
    """A depthwise convolution of which one filter in four is masked."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, 3, 3))
        self.register_buffer("mask", torch.tensor([True, False, True, True])[:, None, None, None].expand(4, 1, 3, 3))

    def forward(self, x):
        return F.conv2d(x, ops.mask_weight(self.weight, self.mask, "unstructured"), None, 1, 1, 1, 4)


def test_a_masked_filter_takes_its_input_and_its_output_away():
    x = torch.randn(1, 4, 5, 5)
    graph_module = capture(Masked(), (x,))
    assert depthwise_conv2d in targets(graph_module)
    [row] = [row for row in chainfx.count(graph_module, x).rows if row.facts]
    assert (row.facts.kept_outputs, row.facts.kept_inputs) == (Fraction(3, 4), Fraction(3, 4))


def test_other_passes_see_a_layer(tmp_path):
    model, x = separable(2)
    expected = model(x)
    fused = Fuse().apply(graph_of(copy.deepcopy(model), x), PassContext(graph_of(model, x), (x,))).graph_module
    assert not fused.graph.find_nodes(op="call_module", target="2")
    torch.testing.assert_close(fused(x), expected, rtol=1e-12, atol=1e-12)
    skipped = LowRank(0.9).apply(graph_of(copy.deepcopy(model), x), PassContext(graph_of(model, x), (x,))).skipped
    assert "it is a convolution of 8 groups" in {each.reason for each in skipped}
    x = x.float()
    small = chainfx.compile(model.float(), [Quantize(4, 8)], example_inputs=x, calibration=[x])
    small.save(tmp_path / "small")
    assert torch.equal(chainfx.load(tmp_path / "small")(x), small(x))


def test_a_quantized_graph_captured_again_keeps_its_dialect_ops():
    model, x = separable(2)
    x = x.float()
    quantized = chainfx.compile(model.float(), [Quantize(4, 8)], example_inputs=x, calibration=[x]).graph_module
    assert targets(capture(quantized, (x,))) == targets(quantized)
