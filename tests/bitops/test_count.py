"""What the interpreter makes of a graph: rows, columns, batches, formats, and what nobody can count."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import symbolic_trace

from chainfx.bitops import CostReport, count
from chainfx.bitops.widths import literal
from chainfx.errors import CostError, InputError
from chainfx.ir.graph import ops
from chainfx.zoo import mobilenet_v2, resnet, vgg
from tests.bitops.graphs import graph_of

W = torch.zeros(8, 4)
X = (torch.zeros(2, 4),)


def quantized(bits, x_bits=8):
    def network(x, weight, clip):
        x = ops.quantize_activation(x, clip, x_bits, False)
        return F.linear(x, ops.quantize_weight(weight, bits), None)

    return graph_of(network, weight=W.clone(), clip=torch.ones(()))


@pytest.fixture
def tiny():
    return symbolic_trace(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    )


def test_rows_of_a_small_network(tiny):
    report = count(tiny, (torch.zeros(2, 3, 8, 8),))
    rows = [(r.node, r.operator, r.module, r.shape, r.macs, r.elementwise, r.bitops) for r in report.rows]
    assert rows == [
        ("_0", "Conv2d", "0", (2, 4, 6, 6), 144 * 27, 0, 144 * 27 * 1024),
        ("_1", "BatchNorm2d", "1", (2, 4, 6, 6), 0, 144, 0),
        ("_2", "ReLU", "2", (2, 4, 6, 6), 0, 144, 0),
        ("_4", "Linear", "4", (2, 10), 1440, 0, 1440 * 1024),
    ]
    assert report.macs == 144 * 27 + 1440
    assert report.elementwise == 288
    assert report.bitops == report.expected_bitops == report.macs * 1024
    assert report.expected_macs == report.macs


def test_storage_and_parameters(tiny):
    report = count(tiny, (torch.zeros(1, 3, 8, 8),))
    parameters = 4 * 27 + 4 + 8 + 1440 + 10
    assert report.parameters == parameters
    assert report.storage_bits == 32 * (parameters + 8) + 64  # running mean and variance, and an int64 counter


@pytest.mark.parametrize("make", [mobilenet_v2, resnet, vgg])
def test_the_batch_does_not_matter(make):
    with torch.device("meta"):
        graph_module = symbolic_trace(make())
    one, three = (count(graph_module, (torch.zeros(n, 3, 32, 32, device="meta"),)) for n in (1, 3))
    assert [(r.macs, r.elementwise, r.bitops) for r in one.rows] == [
        (r.macs, r.elementwise, r.bitops) for r in three.rows
    ]


def test_additive_over_composition():
    first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    second = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 5, 3))
    image, middle = (torch.zeros(1, channels, 8, 8) for channels in (3, 4))
    parts = [count(symbolic_trace(part), (x,)) for part, x in ((first, image), (second, middle))]
    whole = count(symbolic_trace(nn.Sequential(first, second)), (image,))
    for column in ("macs", "bitops", "elementwise", "storage_bits", "parameters"):
        assert getattr(whole, column) == sum(getattr(part, column) for part in parts) > 0


def test_a_shared_layer_counts_as_often_as_it_runs_and_is_stored_once():
    layer = nn.Linear(4, 4, bias=False)
    report = count(symbolic_trace(nn.Sequential(layer, nn.ReLU(), layer)), X)
    assert (report.macs, report.parameters, report.storage_bits) == (32, 16, 16 * 32)


def test_nothing_is_executed_and_nothing_changes(tiny):
    tiny.train()
    tiny.get_submodule("1").eval()
    before = copy.deepcopy(tiny.state_dict())
    count(tiny, (torch.randn(1, 3, 8, 8),))  # one sample: BatchNorm in train mode would refuse some shapes
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    assert tiny.training and tiny.get_submodule("4").training and not tiny.get_submodule("1").training
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_batch_norm_of_one_value_counts_in_train_mode():
    network = symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))).train()
    assert count(network, (torch.zeros(1, 4),)).macs == 16


def test_a_network_on_meta_counts():
    with torch.device("meta"):
        network = symbolic_trace(nn.Linear(10**6, 10**6))
    assert count(network, (torch.zeros(1, 10**6, device="meta"),)).macs == 10**12


def test_element_wise_work_is_the_largest_tensor():
    def network(x, weight):
        y = x + weight  # broadcast: 8 x 4
        y = F.adaptive_avg_pool1d(y[:, None], 2)  # reads 32
        return F.softmax(y, dim=-1).sum(-1)  # 16 and 16

    report = count(graph_of(network, weight=torch.zeros(8, 4)), (torch.zeros(1, 4),))
    assert [(r.operator, r.elementwise) for r in report.rows] == [
        ("add", 32),
        ("adaptive_avg_pool1d", 32),
        ("softmax", 16),
        ("sum", 16),
    ]
    assert report.macs == report.bitops == 0


def test_work_on_weights_alone_is_not_per_sample():
    def network(x, weight, other):
        return x @ torch.relu(weight @ other)

    report = count(graph_of(network, weight=torch.zeros(4, 4), other=torch.zeros(4, 3)), X)
    assert [(row.operator, row.macs) for row in report.rows] == [("matmul", 12)]


def test_a_tensor_written_in_place_depends_on_the_sample():
    def network(x, weight):
        made = torch.zeros_like(x)
        made.add_(x)
        return made @ weight

    assert count(graph_of(network, weight=torch.zeros(4, 3)), X).macs == 12


@torch.fx.wrap
def mystery(x):
    return x * 2


class Opaque(nn.Module):
    def forward(self, x):
        return x * 2 + 1 if self.training else x * 2


class OwnConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class Leaves(torch.fx.Tracer):
    def is_leaf_module(self, module, path):
        return True


class Unknown(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x) * 2


def test_what_no_formula_knows_is_looked_into():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.opaque, self.conv, self.norm = Opaque(), OwnConv(1, 1, 1), OwnNorm(1)

        def forward(self, x):
            return mystery(self.norm(self.conv(self.opaque(x))))

    network = Network().train()
    report = count(torch.fx.GraphModule(network, Leaves().trace(network)), (torch.zeros(1, 1, 4, 4),))
    assert report.uncounted == ()
    assert [(row.operator, row.module, row.macs, row.elementwise) for row in report.rows] == [
        ("Opaque", "opaque", 0, 16),
        ("OwnConv", "conv", 16, 16),
        ("OwnNorm", "norm", 0, 32),
        ("mystery", "", 0, 16),
    ]


@torch.fx.wrap
def mixed(x, weight, other):
    made = x.new_zeros(4, 4)
    made += weight @ other  # no input in it: computed once
    made[0] += x[0]
    return torch.einsum("ij,jk->ik", made, weight).add_(1) @ torch.eye(4)


def test_inside_of_a_function_only_what_depends_on_the_sample_costs():
    report = count(graph_of(mixed_network, weight=torch.zeros(4, 4), other=torch.zeros(4, 4)), (torch.zeros(4, 4),))
    assert [(row.operator, row.macs, row.elementwise) for row in report.rows] == [("mixed", 2 * 16, 1 + 4)]


def mixed_network(x, weight, other):
    return mixed(x, weight, other)


def test_a_method_that_no_formula_knows_is_looked_into():
    def network(x, weight):
        return x.addbmm(x[None], weight).logaddexp2(x)

    report = count(graph_of(network, weight=torch.zeros(1, 4, 4)), (torch.zeros(4, 4),))
    assert [(row.operator, row.macs, row.elementwise) for row in report.rows] == [("addbmm", 16, 0)]
    assert [item.operator for item in report.uncounted] == ["logaddexp2"]


def test_unknown_operators_are_listed():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.unknown, self.linear = Unknown(), nn.Linear(4, 4)

        def forward(self, x):
            return torch.fft.fft(self.unknown(self.linear(x)).real)

    network = Network()
    report = count(torch.fx.GraphModule(network, Leaves().trace(network)), (torch.zeros(1, 4),))
    assert [(item.operator, item.module, item.reason) for item in report.uncounted] == [
        ("Unknown", "unknown", "opaque module"),
        ("fft_fft", "", "operator without a formula"),
    ]
    assert [row.operator for row in report.rows] == ["Linear"]
    assert "NOT COUNTED: fft_fft (fft_fft, operator without a formula)" in str(report)


def test_sizes_and_checks_are_no_work():
    class Network(nn.Module):
        def forward(self, x):
            torch._assert(x.dim() == 2, "two")
            size = x.size(0) * x.shape[1] // 2
            return x.reshape(size, -1)

    report = count(symbolic_trace(Network()), X)
    assert (report.rows, report.uncounted) == ((), ())


# formats


def test_strict_counts_the_bits_of_each_layer():
    (*_, row) = count(quantized(3, 5), X, "strict").rows
    assert (row.operator, row.weight_bits, row.activation_bits, row.bitops) == ("linear", 3, 5, 32 * 15)
    assert row.module == ""


def test_a_format_passes_through_moves_max_pool_and_relu_but_not_through_arithmetic():
    def network(x, weight, clip):
        x = ops.quantize_activation(x, clip, 4, True)
        moved = F.max_pool1d(F.dropout(torch.relu(x.reshape(2, 2, 2)), 0.5), 1).flatten(1)
        halves = torch.cat(moved.chunk(2, dim=1), dim=1)
        first = F.linear(halves, weight, None)
        second = F.linear(F.gelu(halves), weight, None)
        mixed = F.linear(torch.cat([moved[:, :2], F.gelu(moved)[:, :2]], dim=1), weight, None)
        return first, second, mixed, F.linear(moved + 0, weight, None)

    report = count(graph_of(network, weight=W.clone(), clip=torch.ones(())), X, "strict")
    assert [row.activation_bits for row in report.rows if row.macs] == [4, 32, 32, 32]


def test_half_precision_counts_its_width():
    report = count(symbolic_trace(nn.Linear(4, 8).to(torch.bfloat16)), (torch.zeros(2, 4, dtype=torch.bfloat16),))
    assert report.bitops == 32 * 16 * 16
    assert report.storage_bits == 40 * 16


def test_attention_multiplies_floats_with_values():
    def network(x, clip):
        q = ops.quantize_activation(x, clip, 8, True)
        return F.scaled_dot_product_attention(q, q, q)

    (*_, row) = count(graph_of(network, clip=torch.ones(())), (torch.zeros(1, 3, 4),), "strict").rows
    assert (row.weight_bits, row.activation_bits) == (8, 32)


def test_the_nominal_pair_is_that_of_most_macs():
    def network(x, small, large, clip):
        x = ops.quantize_activation(x, clip, 8, False)
        y = F.linear(x, ops.quantize_weight(small, 2), None)
        z = ops.quantize_activation(y, clip, 6, False)
        return F.linear(F.linear(z, ops.quantize_weight(large, 4), None), large, None)

    graph_module = graph_of(network, small=torch.zeros(5, 4), large=torch.zeros(5, 5), clip=torch.ones(()))
    nominal, strict = (count(graph_module, X, name) for name in ("mac_bw_ba", "strict"))
    assert nominal.bitops == (20 + 25 + 25) * 4 * 6
    assert strict.bitops == 20 * 2 * 8 + 25 * 4 * 6 + 25 * 32 * 32


@pytest.mark.parametrize("bits", ["x", 0, 2.5, True])
def test_a_quantizer_without_bits_is_an_error(bits):
    graph_module = quantized(4)
    (node,) = graph_module.graph.find_nodes(op="call_function", target=ops.quantize_weight)
    node.args = (node.args[0], bits)
    with pytest.raises(CostError) as caught:
        literal(node, 1, "bits")
    assert str(caught.value) == (
        f"node 'quantize_weight' has bits={bits!r}; a quantizer needs its bits as a whole number of at least 1."
    )


# storage of quantized weights


def test_quantized_weights_are_stored_as_codes_and_scales():
    assert count(quantized(3), X).storage_bits == 32 * 3 + 32 + 32  # codes, scale, clip
    per_channel = quantized(3)
    (node,) = per_channel.graph.find_nodes(op="call_function", target=ops.quantize_weight)
    node.args = (node.args[0], 3, "uniform", 0)
    assert count(per_channel, X).storage_bits == 32 * 3 + 8 * 32 + 32


def test_codes_of_the_deploy_form_cost_and_count_the_same():
    def network(x, codes, scale, clip):
        return F.linear(
            ops.quantize_activation(x, clip, 8, False), ops.dequantize_weight(codes, scale, 3, "dorefa"), None
        )

    codes = torch.zeros(8, 4, dtype=torch.uint8)
    deployed = graph_of(network, codes=codes, scale=torch.ones(()), clip=torch.ones(()))
    del deployed.scale
    deployed.register_buffer("scale", torch.ones(()))
    trained = count(quantized(3), X)
    report = count(deployed, X)
    assert (report.bitops, report.storage_bits) == (trained.bitops, trained.storage_bits)
    assert report.parameters == trained.parameters == 33


def test_a_weight_that_is_also_read_as_it_is_is_stored_as_it_is():
    def network(x, weight):
        return F.linear(x, ops.quantize_weight(weight, 3), None), F.linear(x, weight, None)

    assert count(graph_of(network, weight=W.clone()), X).storage_bits == 32 * 32


# the report


def test_the_report_survives_json():
    for convention in ("mac_bw_ba", "fixops64", "uniq_bops"):
        report = count(quantized(3, 5), X, convention)
        assert CostReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_the_report_is_frozen():
    report = count(quantized(3), X)
    with pytest.raises(AttributeError):
        report.convention = "strict"
    with pytest.raises(AttributeError):
        report.rows[0].bitops = 0


def test_the_report_prints_its_convention_and_totals():
    lines = str(count(quantized(3, 5), X, "strict")).splitlines()
    assert lines[0] == "cost of one sample, convention strict (1 MAC = 2 FLOPs)"
    assert [line.split() for line in lines if line.strip().startswith("linear")] == [
        ["linear", "linear", "2x8", "32", "3", "x", "5", "480", "100.0%"]
    ]
    assert lines[-2:] == [
        "MACs 32, BitOps 480, element-wise 4",
        "storage 160 bits (0.000 MB), parameters 33",
    ]


def test_counting_twice_gives_equal_reports():
    assert count(quantized(3), X) == count(quantized(3), X)


# errors


def test_wrong_input_shape():
    with pytest.raises(InputError, match=r"does not accept example_inputs of shape \(2, 5\)"):
        count(quantized(3), (torch.zeros(2, 5),))


def test_work_that_does_not_divide_by_the_batch():
    def network(x, y):
        return y + 1

    with pytest.raises(CostError) as caught:
        count(graph_of(network), (torch.zeros(2), torch.zeros(3)))
    assert str(caught.value) == (
        "the work of node 'add', 3, does not divide by the batch of 2; count with a batch of one sample."
    )


def test_what_comes_out_of_an_embedding_is_float_and_places_are_no_values():
    """The integers that say which rows, and codes whose scale differs from row to row, are no operands of products."""

    def network(ids, table, clip):
        rows = F.embedding(ids, ops.quantize_weight(table, 4, "uniform", 0))
        eight = ops.quantize_activation(rows, clip, 8, True)
        return F.linear(rows, table, None), F.linear(eight.index_select(1, ids[0]), table, None)

    report = count(
        graph_of(network, table=torch.zeros(5, 5), clip=torch.ones(())), (torch.zeros(1, 3).long(),), "strict"
    )
    assert [row.activation_bits for row in report.rows if row.macs] == [32, 8]
    words = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
    (row,) = count(symbolic_trace(words), (torch.zeros(1, 3).long(),), "strict").rows
    assert (row.activation_bits, row.bitops) == (32, 3 * 8 * 32 * 32)
