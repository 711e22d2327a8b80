"""Cost reports and diffs as comma-separated values."""

import csv
import io

import pytest
import torch
from torch.fx import symbolic_trace

from chainfx.bitops import count
from tests.report.values import resnet_report


@pytest.fixture(scope="module")
def report():
    return resnet_report()


def test_csv_has_one_line_a_node_with_the_same_numbers(report):
    lines = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [line["node"] for line in lines] == [row.node for row in report.rows]
    for line, row in zip(lines, report.rows, strict=True):
        assert (int(line["macs"]), int(line["elementwise"])) == (row.macs, row.elementwise)
        assert float(line["bitops"]) == float(row.bitops)
        assert line["weight_bits"] == ("" if row.weight_bits is None else str(row.weight_bits))
        assert line["output"].split("x") == [str(size) for size in row.shape]
        assert line["convention"] == "uniq_bops"


@torch.fx.wrap
def secret(x):
    return torch.fft.fft(x)


def test_csv_lists_what_nobody_could_count():
    report = count(symbolic_trace(lambda x: secret(x) + 0), (torch.zeros(1, 4),))
    *_, line = csv.DictReader(io.StringIO(report.to_csv()))
    assert (line["node"], line["macs"], line["not_counted"]) == ("secret", "", report.uncounted[0].reason)
