"""The text of a channel analysis."""

from dataclasses import replace

import torch
from torch import nn

from chainfx.ir.capture import capture
from chainfx.ir.channels import SourceLayer, analyse_channels


def analysis_of(*layers):
    x = (torch.zeros(2, 3, 8, 8),)
    return analyse_channels(capture(nn.Sequential(*layers).eval(), x), x)


def test_groups_and_frozen_channels():
    analysis = analysis_of(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    assert str(analysis).splitlines() == [
        "channel groups: 1, units: 4; 99.0 % of the parameters (192 of 194) lie in them",
        "  _0: 4 units, made by _0; 7 parameter dimensions of 192 parameters",
        "  frozen _3: 2 channels, it is an output of the network",
    ]


def test_a_group_of_attention_says_how_it_is_kept():
    analysis = analysis_of(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    line = str(replace(analysis, attention=frozenset({"_0"}), fold="heads")).splitlines()[1]
    assert line.startswith("  _0: 4 units, heads of attention, made by _0; ")


def test_of_many_layers_the_first_five_are_named():
    analysis = analysis_of(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    for count, made_by in ((6, "made by a0, a1, a2, a3, a4, a5;"), (7, "made by a0, a1, a2, a3, a4, 2 more;")):
        sources = tuple(SourceLayer(f"a{index}", "weight", 0) for index in range(count))
        shown = replace(analysis, groups=(replace(analysis.groups[0], sources=sources),))
        assert made_by in str(shown)
