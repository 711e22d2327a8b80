"""Counting again without the graph equals counting the graph that was quantized that way."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainfx.bitops import CostReport, convention_names, count
from chainfx.errors import CostError
from chainfx.ir.capture.ways import capture
from chainfx.ir.graph import ops
from chainfx.passes import Quantize
from chainfx.passes.base import PassContext
from tests.bitops.graphs import called, graph_of, quantize_layers

X = (torch.zeros(1, 3, 8, 8),)
CONVENTIONS = ("bayesian_bits", "fixops64", "hawq_v3", "mac_bw_ba", "strict", "uniq_bops", "uniq_bops_sparse")


class Net(nn.Module):
    """Convolutions, a product of two activations, a residual add, and a layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 1)])
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.twice = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = F.max_pool2d(x + self.body[1](torch.relu(self.body[0](x))), 2)
        x = self.up(x).mean(3).flatten(1).view(-1, 2, 16)
        x = torch.relu(x @ x.transpose(1, 2)) @ x
        return self.head(self.twice(self.twice(x)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return capture(Net().eval(), X)


@pytest.fixture(scope="module")
def report(network):
    return count(network, X)


def quantized(network, options):
    graph_module = copy.deepcopy(network)
    context = PassContext(graph_module, X, calibration=[X])
    return Quantize(**options).apply(graph_module, context).graph_module


def layers_of(report):
    return [(row.node, row.module, row.facts, row.bitops, row.segment) for row in report.rows if row.macs]


SETTINGS = {
    "all alike": ({"weights": 4, "activations": 8, "first": None, "last": None}, {"*": (4, 8)}),
    "ends at 8 bits": (
        {"weights": 1, "activations": 8, "first": 8, "last": 8},
        {"*": (1, 8), "stem": (8, 8), "head": (8, 8)},
    ),
    "weights alone": (
        {"weights": 3, "activations": 32, "first": None, "last": None},
        {"*": (3, 32)},
    ),
    "some in float": (
        {"weights": 2, "activations": 6, "first": None, "last": None, "skip": ("body*",)},
        {"*": (2, 6), "body.?": (32, 32)},
    ),
}


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_equal_to_a_fresh_count_of_the_quantized_graph(network, report, setting, convention):
    options, widths = SETTINGS[setting]
    fresh = count(quantized(network, options), X, convention)
    again = report.reprice(convention, widths)
    assert layers_of(again) == layers_of(fresh)
    assert (again.convention, again.bitops, again.macs) == (convention, fresh.bitops, fresh.macs)
    assert again.expected_bitops == fresh.expected_bitops
    assert again.storage["nominal"] == fresh.storage["nominal"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_dense_storage_lacks_the_scales_and_clips_of_new_quantizers(network, report, setting):
    options, widths = SETTINGS[setting]
    graph_module = quantized(network, options)
    nodes = graph_module.graph.find_nodes
    clips = len({node.args[1].target for node in nodes(op="call_function", target=ops.quantize_activation)})
    scaled = {
        node.args[0].target: node.args[0].meta["val"].shape[node.args[3]]
        for node in (count(graph_module, X), nodes(op="call_function", target=ops.quantize_weight))[1]
    }
    again = report.reprice(widths=widths)
    assert count(graph_module, X).storage_bits - again.storage_bits == 32 * (clips + sum(scaled.values()))


def test_from_one_setting_to_another(network):
    before, after = (SETTINGS[name] for name in ("all alike", "ends at 8 bits"))
    start, fresh = (count(quantized(network, options), X, "hawq_v3") for options, _ in (before, after))
    assert layers_of(start.reprice(widths=after[1])) == layers_of(fresh)
    clips = fresh.storage_bits - start.reprice(widths=after[1]).storage_bits
    assert clips % 32 == 0
    assert start.reprice(widths={"*": (32, 32)}).bitops == count(network, X, "hawq_v3").bitops


def test_without_arguments_nothing_changes(report):
    assert report.reprice() == report
    assert report.reprice(report.convention, {}, None) == report


def test_the_report_it_was_asked_of_stays(report):
    before = report.to_dict()
    report.reprice("strict", {"*": (1, 1)})
    assert report.to_dict() == before


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_another_convention_alone(network, report, convention):
    assert report.reprice(convention) == count(network, X, convention)


def test_a_report_that_was_read_from_json(report):
    read = CostReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert read.reprice("uniq_bops", {"*": (4, 8)}) == report.reprice("uniq_bops", {"*": (4, 8)})
    again = report.reprice("hawq_v3", {"*": (4, 8)})
    assert CostReport.from_dict(json.loads(json.dumps(again.to_dict()))) == again


def test_products_of_activations_keep_their_formats(report):
    rows = [row for row in report.reprice("strict", {"*": (4, 4)}).rows if row.macs]
    assert [row.operator for row in rows if (row.weight_bits, row.activation_bits) == (32, 32)] == ["matmul", "matmul"]


def test_patterns_name_modules_or_nodes_and_the_last_one_decides(report):
    def bits(widths):
        return {row.module: row.weight_bits for row in report.reprice(widths=widths).rows if row.weight}

    assert set(bits({"body.*": (4, 8)}).values()) == {4, 32}
    assert bits({"body.*": (4, 8), "body.1": (2, 8)})["body.1"] == 2
    assert bits({"body.1": (2, 8), "body.*": (4, 8)})["body.1"] == 4
    node = next(row.node for row in report.rows if row.module == "stem")
    assert bits({node: (5, 8)})["stem"] == 5


def test_a_shared_weight_is_stored_once(report):
    rows = [row for row in report.rows if row.module == "twice"]
    assert len(rows) == 2
    assert report.storage_bits - report.reprice(widths={"twice": (4, 8)}).storage_bits == 16 * 16 * 28
    one_use = {rows[1].node: (4, 8)}  # the other use still reads it in float
    assert report.reprice(widths=one_use).storage_bits == report.storage_bits


def test_a_weight_that_is_also_read_as_it_is_stays_as_wide():
    def tied(x, weight):
        return F.linear(F.embedding(x, weight), weight, None)

    graph_module = graph_of(tied, weight=torch.zeros(10, 4))
    report = count(graph_module, (torch.zeros(2, 3, dtype=torch.int64),))
    assert report.reprice(widths={"linear": (4, 8)}).storage_bits == report.storage_bits == 40 * 32


def test_two_names_of_one_tensor_are_stored_once():
    first, second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    second.weight = first.weight
    report = count(capture(nn.Sequential(first, nn.ReLU(), second).eval(), (torch.zeros(1, 8),)), (torch.zeros(1, 8),))
    assert report.reprice(widths={"*": (4, 8)}).storage_bits == 64 * 4


def test_codes_of_a_codebook_keep_their_width():
    graph_module = graph_of(
        lambda x, codes, codebook: F.linear(x, ops.look_up(codes, codebook), None),
        codes=torch.zeros(4, 8, dtype=torch.uint8),
        codebook=torch.zeros(4),
    )
    report = count(graph_module, (torch.zeros(1, 8),))
    again = report.reprice("strict", {"linear": (8, 8)})
    assert (again.bitops, again.storage_bits) == (32 * 64, report.storage_bits)


def test_encodings_that_depend_on_values_are_left_out():
    graph_module = graph_of(lambda x, weight: F.linear(x, weight, None), weight=torch.zeros(4, 8))
    report = count(graph_module, (torch.zeros(1, 8),), encodings=("bitmap", "entropy"))
    assert set(report.reprice("strict").storage) == {"dense", "nominal", "bitmap", "entropy"}
    assert set(report.reprice(widths={"*": (4, 4)}).storage) == {"dense", "nominal"}


def exits(x, b1, h1, b2):
    x = F.linear(x, b1, None)
    return ops.exit_point(F.linear(x, h1, None), "early", 0.9, "margin"), F.linear(x, b2, None)


def test_other_exit_rates():
    graph_module = graph_of(exits, **{name: torch.zeros(4, 4) for name in ("b1", "h1", "b2")})
    report = count(graph_module, (torch.zeros(1, 4),))
    again = report.reprice("strict", {"*": (4, 4)}, {"early": 0.25})
    fresh = count(quantize_layers(graph_module, lambda *_: (4, 4)), (torch.zeros(1, 4),), "strict", {"early": 0.25})
    assert again.expected_bitops == fresh.expected_bitops == 16 * (32 + 0.75 * 16)
    assert again.reprice("mac_bw_ba").exit_rates == (0.25,)
    with pytest.raises(CostError) as caught:
        report.reprice(exit_rates={"late": 0.5})
    assert str(caught.value) == "exit_rates names 'late', which is no exit of the network; its exits are early."


@pytest.mark.parametrize(
    ("widths", "text"),
    [
        ({"tail": (4, 8)}, "widths: 'tail' matches no convolution or linear layer; names look like 'body.0'."),
        ({"matmul": (4, 8)}, "widths: 'matmul' matches no convolution or linear layer; names look like 'body.0'."),
        ({"*": (0, 8)}, "widths: '*' is given (0, 8); give (weight bits, activation bits), each 1..8 or 32."),
        ({"*": (4, 16)}, "widths: '*' is given (4, 16); give (weight bits, activation bits), each 1..8 or 32."),
        ({"*": (True, 8)}, "widths: '*' is given (True, 8); give (weight bits, activation bits), each 1..8 or 32."),
        ({"*": 4}, "widths: '*' is given 4; give (weight bits, activation bits), each 1..8 or 32."),
    ],
)
def test_wrong_widths(report, widths, text):
    with pytest.raises(CostError) as caught:
        report.reprice(widths=widths)
    assert str(caught.value) == text


def one_relu(x):
    return torch.relu(x)


def test_a_network_without_layers():
    report = count(graph_of(one_relu), (torch.zeros(1, 4),))
    assert report.reprice("strict").bitops == 0
    with pytest.raises(CostError) as caught:
        report.reprice(widths={"*": (4, 8)})
    assert str(caught.value) == "widths: '*' matches no convolution or linear layer; the network has none."


def test_an_unknown_convention(report):
    with pytest.raises(CostError) as caught:
        report.reprice("flops")
    assert str(caught.value) == f"there is no convention named 'flops'; use one of {', '.join(convention_names())}."


def test_a_weight_that_a_module_computes_has_no_width_of_its_own():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4, bias=False))
    report = count(called(layer), (torch.zeros(1, 8),))
    again = report.reprice("strict", {"inner": (4, 8)})
    assert (again.bitops, again.storage_bits) == (32 * 32, report.storage_bits)
