"""The text of what could be done to a network."""

import torch
from torch import nn

from chainfx.linting import explain
from tests.nets import graph_of


def test_facts_then_a_row_for_each_pass_then_why():
    x = torch.zeros(1, 8)
    explained = explain(graph_of(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval(), x), (x,))
    lines = str(explained).splitlines()
    assert lines[:6] == [
        "a network of the kind other: 384 MACs, 420 parameters, 1.6 KiB",
        "channels: 1 groups with 99% of the parameters can be pruned",
        "frozen, because it is an output of the network: _2",
        "heads: none",
        "places for exits: _1",
        "quantizable: 100% of the MACs are in convolution and linear layers",
    ]
    rows = [line.split() for line in lines if line.startswith("quantize(8, 8)")]
    assert [row[2:4] for row in rows] == [["1.00x", "16.00x"]]
    assert "prune-channels leaves _2 alone: 4 channels stay: it is an output of the network" in lines
    assert "fuse changes nothing" in lines and max(map(len, lines)) <= 100
