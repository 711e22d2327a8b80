"""Bytes moved, memory at the peak and energy, against numbers worked out by hand."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import chainfx
from chainfx.bitops import HOROWITZ_2014, CostReport, count
from chainfx.ir.capture import capture
from chainfx.ir.graph import FLOAT32, Format
from chainfx.passes import PassContext, Quantize
from chainfx.report import render

X = (torch.zeros(1, 3, 8, 8),)


class Residual(nn.Module):
    """Two convolutions of 4 channels with a skip connection around the second, and a classifier."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.second(x))
        return self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return capture(Residual().eval(), X)


def test_a_layer_moves_its_weight_its_input_and_its_output(network):
    moved = {row.node: row.moved_bits for row in count(network, X).rows if row.macs}
    assert moved == {
        "first": 32 * (4 * 3 * 9 + 3 * 64 + 4 * 64),
        "second": 32 * (4 * 4 * 9 + 4 * 64 + 4 * 64),
        "last": 32 * (5 * 4 + 4 + 5),
    }


def test_what_is_moved_is_of_one_sample_whatever_the_batch(network):
    one, four = (count(network, (torch.zeros(batch, 3, 8, 8),)) for batch in (1, 4))
    assert one.moved_bits == four.moved_bits
    assert one.peak_activation_bits == four.peak_activation_bits


def test_both_factors_of_a_product_of_activations_count_once(network):
    class Scores(nn.Module):
        def forward(self, x):
            return x @ x.transpose(1, 2)

    report = chainfx.count(Scores(), torch.zeros(2, 4, 6))
    assert report.moved_bits == 32 * (24 + 24 + 16)


def test_the_peak_holds_the_skip_connection(network):
    # the second convolution reads its input, which the addition needs after it, and writes its output
    assert count(network, X).peak_activation_bits == 32 * (4 * 64 + 4 * 64)


def test_element_wise_work_and_views_take_no_memory_of_their_own():
    layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 2))
    report = chainfx.count(layers, torch.zeros(1, 8))
    assert report.peak_activation_bits == 32 * (8 + 16)


def test_a_quantizer_says_the_width_of_what_is_stored():
    layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    inputs = (torch.zeros(1, 8),)
    graph_module = capture(layers, inputs)
    context = PassContext(graph_module, inputs, calibration=[(torch.randn(4, 8),)])
    small = count(Quantize(4, 8).apply(graph_module, context).graph_module, inputs)
    inner = next(row for row in small.rows if row.macs == 256)
    assert inner.moved_bits == 4 * 256 + 8 * (16 + 16)
    assert small.peak_activation_bits == 8 * (16 + 16)


def test_other_widths_price_the_bytes_anew_and_leave_the_peak_open(network):
    report = count(network, X)
    small = report.reprice(widths={"second": (4, 8)})
    row = next(row for row in small.rows if row.node == "second")
    assert row.moved_bits == 4 * 144 + 8 * (256 + 256)
    assert small.peak_activation_bits is None and small.peak_bits is None
    assert "memory at the peak: unknown, as widths were changed without the graph" in render(small, memory=True)


def test_energy_is_that_of_macs_and_of_bytes(network):
    report = count(network, X)
    expected = sum(row.macs for row in report.rows) * 4.6 + report.moved_bits / 8 * 162.5
    assert report.energy() == pytest.approx(expected / 1e6)
    assert report.energy(replace(HOROWITZ_2014, byte=0)) == pytest.approx(report.macs * 4.6 / 1e6)


def test_energy_of_a_mac_follows_its_widths():
    mac = HOROWITZ_2014.mac
    assert mac(Format(8), Format(8)) == pytest.approx(0.3)
    assert mac(Format(1), Format(8)) == pytest.approx(0.2 / 8 + 0.1)
    assert mac(Format(8), FLOAT32) == mac(FLOAT32, FLOAT32) == 4.6
    assert mac(Format(16, "float"), Format(16, "float")) == 1.5


def test_the_average_sample_moves_less_where_some_leave_early():
    rows = chainfx.count(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.zeros(1, 4)).rows
    parts = (rows[0], replace(rows[1], segment=1))
    report = CostReport("mac_bw_ba", parts, (), {"dense": 1, "nominal": 1}, 1, ("early",), (0.5,), (), ())
    first, second = (row.moved_bits for row in rows)
    assert report.moved_bits == first + second
    assert report.expected_moved_bits == first + second / 2
    assert f"{report.expected_moved_bits / 8e6:,.3f} MB expected" in render(report, memory=True)


def test_json_keeps_all_of_it(network):
    report = count(network, X)
    data = json.loads(json.dumps(report.to_dict()))
    assert CostReport.from_dict(data) == report
    assert data["totals"]["moved_bits"] == report.moved_bits
    assert data["totals"]["energy_uj"] == report.energy()


def test_a_table_of_memory_has_its_columns_and_totals(network):
    lines = render(count(network, X), memory=True).splitlines()
    assert lines[2].split() == ["module", "operator", "w", "x", "a", "MACs", "BitOps", "MB", "moved", "energy", "uJ"]
    assert lines[-3:] == [
        "memory at the peak: 0.003 MB, 0.002 MB of it activations",
        "moved: 0.005 MB",
        "energy: about 0.9 uJ (an estimate, by the table Horowitz 2014, 45 nm)",
    ]
