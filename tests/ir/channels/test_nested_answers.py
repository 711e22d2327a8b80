"""Modules that nobody sees into may answer with tensors in tuples, lists and dictionaries, at any depth."""

import pytest
import torch
from torch import nn

from chainfx.ir.channels import analyse_channels
from tests.ir.channels.masked import assert_equals_masked, captured, random_keep

STEPS = (2, 6, 10)


class Translator(nn.Module):
    """The states of an LSTM in two directions start a second one; all of them are read by layers."""

    def __init__(self):
        super().__init__()
        self.enter, self.encoder = nn.Linear(10, 8), nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)
        self.decoder = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)
        self.words, self.cells = nn.Linear(12, 8), nn.Linear(24, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        x = self.enter(x)
        state = self.encoder(x)[1]
        answer, (hidden, cell) = self.decoder(x, state)
        joined = torch.cat((hidden, cell)).transpose(0, 1)[:, ::2].flatten(1)
        return self.out((self.words(answer).mean(1) + self.cells(joined)).relu())


class Cells(nn.Module):
    """Cells that hand their states on; they are joined as the tuple that they come in."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LSTMCell(10, 6), nn.LSTMCell(10, 6)
        self.middle, self.out = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        state = self.second(x[:, 1], self.first(x[:, 0]))
        return self.out(self.middle(torch.cat(state, 1)).relu())


class Branching(nn.Module):
    """What it does depends on the data, so that it stays a module; the answer is nested."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(10, 6)

    def forward(self, x):
        y = self.inner(x)
        if y.sum() > 0:
            y = y * 2
        return {"all": [y, (y.mean(1), None)], "count": 3}


class Unfolded(nn.Module):
    def __init__(self):
        super().__init__()
        self.branching, self.middle, self.out = Branching(), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        everything, mean = self.branching(x)["all"][0], self.branching(x)["all"][1][0]
        return self.out(self.middle(everything.mean(1) + mean).relu())


@pytest.mark.parametrize(
    ("model", "sizes"), [(Translator, {"words": 8}), (Cells, {"middle": 8}), (Unfolded, {"middle": 8})]
)
def test_what_is_around_an_opaque_module_is_pruned(model, sizes):
    graph_module, inputs = captured(model(), STEPS)
    analysis = analyse_channels(graph_module, inputs)
    assert {group.name: group.size for group in analysis.groups} == sizes
    assert_equals_masked(graph_module, analysis, random_keep(analysis, 0.5), inputs)


def test_why_the_others_stay():
    graph_module, inputs = captured(Translator(), STEPS)
    analysis = analyse_channels(graph_module, inputs)
    (entry,) = (each for each in analysis.frozen if each.node == "enter")
    assert entry.reason == "the inside of module LSTM is not visible (node 'encoder')"
    recurrent = {path for path in dict(graph_module.named_parameters()) if path.startswith(("enc", "dec"))}
    assert {path: analysis.outside[path] for path in recurrent if "weight" in path} == dict.fromkeys(
        (path for path in recurrent if "weight" in path), "the inside of module LSTM is not visible"
    )
