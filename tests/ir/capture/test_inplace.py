"""Operations in place change what is read afterwards, also through views, and nothing removes them as unused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainfx
from chainfx.ir.capture import capture_with_report
from chainfx.ir.graph import Answer, exits_of
from chainfx.passes import EarlyExit, Fuse, PruneChannels, Quantize
from tests.trainers import FakeTrainer


class Base(nn.Module):
    """Two convolutions; ``change`` does something to what is between them, and its result is not used."""

    def __init__(self, change):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 3, 3)
        self.relu = nn.ReLU(inplace=True)
        self.change = change

    def forward(self, x):
        y = self.a(x)
        self.change(self, y)
        return self.b(y)


def pieces(net, y):
    first, _ = y.split(8, 1)
    first.relu_()


def chain(net, y):
    y.view(y.shape[0], -1).mul_(2).add_(1)


def assigned(net, y):
    y[:, :4] = 0


def raised(net, y):
    z = y[:, :4]
    z += 1


def scaled(net, y):
    z = y.view(y.shape[0], 16, -1)
    z *= 2
    z -= 1


def divided(net, y):
    z = y
    z /= 3


def part(net, y):
    y[:, 2:5] += 1


CHANGES = {
    "view": lambda net, y: y.view(y.shape[0], 16, -1).mul_(3),
    "permuted": lambda net, y: y.permute(0, 2, 3, 1).mul_(2),
    "flat": lambda net, y: y.flatten(2).clamp_(0),
    "halves": lambda net, y: y.chunk(2, 1)[0].mul_(3),
    "pieces": pieces,
    "narrowed": lambda net, y: y.narrow(1, 0, 8).zero_(),
    "unbound": lambda net, y: y.unbind(1)[0].zero_(),
    "diagonal": lambda net, y: torch.diagonal(y, 0, 2, 3).add_(1.0),
    "data": lambda net, y: y.data.mul_(2),
    "plain": lambda net, y: y.mul_(2).add_(1),
    "sliced": lambda net, y: y[:, :4].zero_(),
    "assigned": assigned,
    "raised": raised,
    "scaled": scaled,
    "divided": divided,
    "part": part,
    "chain": chain,
    "function": lambda net, y: torch.relu_(y),
    "option": lambda net, y: F.hardtanh(y, -0.1, 0.1, inplace=True),
    "module": lambda net, y: net.relu(y),
    "module on a view": lambda net, y: net.relu(y.transpose(1, 2)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_compressed_network_computes_what_the_model_does(name):
    torch.manual_seed(0)
    net, x = Base(CHANGES[name]).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = net(x)
        plain = Base(lambda net, y: None).double().eval()
        plain.load_state_dict(net.state_dict())
        assert not torch.allclose(plain(x), expected), "the change must be one"
        for graph in (chainfx.capture(net, (x,)), chainfx.compile(net, [Fuse()], example_inputs=x)):
            torch.testing.assert_close(graph(x), expected)


def test_an_augmented_assignment_that_nobody_else_sees_makes_a_new_tensor():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.a(x)
            z = self.b(y)
            z += y
            return z

    graph_module, report = capture_with_report(Residual().eval(), (torch.randn(2, 4),))
    assert report.method == "symbolic"
    assert [node.name for node in graph_module.graph.nodes if "add" in node.name] == ["add"]


@pytest.mark.parametrize("name", ["raised", "scaled", "divided", "part"])
def test_augmented_assignments_need_no_export(name):
    _, report = capture_with_report(Base(CHANGES[name]).eval(), (torch.randn(2, 3, 8, 8),))
    assert report.method == "symbolic"


class Staged(nn.Module):
    """A residual body, changed in place behind a view before an exit is put there."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.out = nn.Linear(8, 10)

    def forward(self, x):
        y = self.a(x)
        y.flatten(2).clamp_(0)
        z = self.b(y).relu()
        return self.out(z.mean((2, 3)))


def test_a_change_in_place_belongs_to_the_segment_that_reads_it():
    torch.manual_seed(0)
    net, x, stages = Staged().eval(), torch.randn(16, 1, 8, 8), []
    small = chainfx.compile(
        net,
        [EarlyExit(exits=1, threshold=0.11, keep=True)],
        example_inputs=x,
        trainer=FakeTrainer(x),
        on_stage=stages.append,
    )
    reference = Answer(stages[-1].graph_module.eval())
    assert exits_of(stages[-1].graph_module)
    torch.testing.assert_close(small(x), reference(x))


def test_what_nobody_reads_is_still_removed():
    """A dropped branch that ends in an operation in place leaves nothing behind."""

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x):
            self.relu(self.b(x))
            return self.a(x)

    graph_module = chainfx.capture(Branch().eval(), (torch.randn(2, 4),))
    assert "b.weight" not in graph_module.state_dict()


def test_passes_keep_the_change():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    net = Base(CHANGES["view"]).double().eval()
    small = chainfx.compile(net, [Quantize(8, 8, scheme="uniform")], example_inputs=x, calibration=[x])
    with torch.no_grad():
        assert (small(x) - net(x)).norm() / net(x).norm() < 0.05
    pruned = chainfx.compile(net, [PruneChannels(0.5)], example_inputs=x)
    shape = pruned.graph_module.state_dict()["a.weight"].shape
    assert shape[0] == 8
    with torch.no_grad():
        y = F.conv2d(x, *(pruned.graph_module.state_dict()[f"a.{name}"] for name in ("weight", "bias"))) * 3
        expected = F.conv2d(y, *(pruned.graph_module.state_dict()[f"b.{name}"] for name in ("weight", "bias")))
        torch.testing.assert_close(pruned(x), expected)
