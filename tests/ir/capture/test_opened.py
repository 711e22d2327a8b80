"""Subclasses of torch's normalizations are opened: torch's layer stays one call, what they add becomes nodes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainfx
from chainfx.ir.artifact import load_graph, save_graph
from chainfx.ir.capture import capture_with_report
from chainfx.ir.capture.ways import _capture_of
from chainfx.ir.channels import analyse_channels
from tests.ir.channels.masked import assert_equals_masked, random_keep, randomize

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Spelled(nn.BatchNorm2d):
    """As timm writes it: torch's forward copied, and an activation after it."""

    def __init__(self, channels, act=None, **options):
        super().__init__(channels, **options)
        self.drop, self.act = nn.Identity(), act or nn.ReLU()

    def forward(self, x):
        torch._assert(x.ndim == 4, "four dimensions")
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        by_batch = self.training or self.running_mean is None
        kept = not self.training or self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if kept else (None, None)
        x = F.batch_norm(x, mean, var, self.weight, self.bias, by_batch, momentum, self.eps)
        return self.act(self.drop(x))


class Called(nn.BatchNorm2d):
    def forward(self, x):
        return F.silu(super().forward(x)) * 2


class Instance(nn.InstanceNorm2d):
    def forward(self, x):
        by_input = self.training or not self.track_running_stats
        mean, var = self.running_mean, self.running_var
        x = F.instance_norm(x.abs(), mean, var, self.weight, self.bias, by_input, self.momentum, self.eps)
        return x.relu()


class Named(nn.BatchNorm2d):
    """Nothing of its own but the name."""


def network(norm):
    torch.manual_seed(0)
    return randomize(nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Conv2d(8, 2, 3)).double())


NORMS = {
    "spelled": lambda: Spelled(8),
    "with a slope for each channel": lambda: Spelled(8, nn.PReLU(8)),
    "cumulative": lambda: Spelled(8, momentum=None),
    "without scales": lambda: Spelled(8, affine=True, eps=1e-3),
    "called": lambda: Called(8),
    "instance": lambda: Instance(8, affine=True, track_running_stats=True),
    "named": lambda: Named(8),
}


def states(net, x):
    """What a network gives in train mode, then in eval mode, and the tensors that it holds afterwards."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        return net.train()(x), net.eval()(x), net.state_dict()


@pytest.mark.parametrize("name", NORMS)
def test_the_graph_is_the_network_in_both_modes_with_its_keys(name):
    net = network(NORMS[name]())
    graph_module, report = capture_with_report(net, (X,))
    assert (report.method, report.opaque, report.dropped) == ("symbolic", (), ())
    (trained, answer, tensors), (our_trained, our_answer, our_tensors) = states(net, X), states(graph_module, X)
    assert torch.equal(trained, our_trained) and torch.equal(answer, our_answer)
    assert our_tensors.keys() == tensors.keys()
    assert all(torch.equal(our_tensors[key], tensors[key]) for key in tensors)
    inner = graph_module.get_submodule("1")
    assert type(inner) in (nn.BatchNorm2d, nn.InstanceNorm2d)
    assert inner.weight is net[1].weight and inner.running_mean is net[1].running_mean
    assert next(iter(graph_module.graph.find_nodes(op="call_module"))).target == "1"
    assert type(net[1]).__name__ in ("Spelled", "Called", "Instance", "Named"), "the model itself stays as it is"


@pytest.mark.parametrize("name", NORMS)
def test_it_is_pruned_saved_and_captured_again(name, tmp_path):
    graph_module = chainfx.capture(network(NORMS[name]()).eval(), (X,))
    analysis = analyse_channels(graph_module, (X,))
    assert [(group.name, group.size) for group in analysis.groups] == [("_0", 8)]
    torch.manual_seed(0)
    pruned = assert_equals_masked(graph_module, analysis, random_keep(analysis, 0.5), (X,))
    save_graph(pruned, tmp_path)
    loaded, _ = load_graph(tmp_path)
    assert torch.equal(loaded(X), pruned(X))
    assert loaded.state_dict().keys() == pruned.state_dict().keys()
    again = chainfx.capture(pruned, (X,))
    assert [node.name for node in again.graph.nodes] == [node.name for node in pruned.graph.nodes]


def test_a_hook_of_an_opened_norm_counts_once():
    net = network(Spelled(8)).eval()
    net[1].register_forward_hook(lambda module, args, out: out + 1)
    graph_module, report = capture_with_report(net, (X,))
    assert report.opaque == ()
    torch.testing.assert_close(graph_module(X), net(X))


class Frozen(nn.BatchNorm2d):
    """Statistics that training does not change."""

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class Shifted(nn.BatchNorm2d):
    def forward(self, x):
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight + 1, self.bias, self.training, self.momentum, self.eps
        )


@pytest.mark.parametrize("norm", [Frozen, Shifted])
def test_one_that_normalizes_in_another_way_stays_whole(norm):
    net = network(norm(8))
    graph_module, report = capture_with_report(net, (X,))
    assert [leaf.path for leaf in report.opaque] == ["1"]
    assert all(map(torch.equal, states(net, X)[:2], states(graph_module, X)[:2]))


def test_a_dropout_with_code_of_its_own_is_opened():
    class Scaled(nn.Dropout):
        def forward(self, x):
            return super().forward(x) * 3

    net = nn.Sequential(nn.Linear(4, 4), Scaled(0.5)).eval()
    x = torch.randn(64, 4)
    graph_module, report = capture_with_report(net, (x,))
    assert report.opaque == ()
    assert torch.equal(graph_module(x), net(x))
    torch.manual_seed(0)
    wanted = net.train()(x)
    torch.manual_seed(0)
    assert torch.equal(graph_module.train()(x), wanted)


def test_it_is_opened_by_export_too():
    class Ends(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), Spelled(8)
            self.weight, self.bias = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x):
            return torch.addmm(self.bias, self.norm(self.conv(x)).mean((2, 3)), self.weight)

    net = randomize(Ends().double()).eval()
    graph_module, report = _capture_of(net, (X,))._follow("export")
    assert [each.sources for each in report.folded] == [("weight",)]
    assert type(graph_module.norm) is nn.BatchNorm2d and report.dropped == ()
    (trained, answer, _), (our_trained, our_answer, _) = states(net, X), states(graph_module, X)
    torch.testing.assert_close((our_trained, our_answer), (trained, answer))


class Drops(nn.Module):
    """Drops whole samples in train mode, as timm's DropPath does."""

    def __init__(self, drop_prob, scales=True):
        super().__init__()
        self.drop_prob, self.scales = drop_prob, scales

    def forward(self, x):
        if not self.training:
            return x
        kept = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.drop_prob)
        return x * (kept.div_(1 - self.drop_prob) if self.scales else kept)


@pytest.mark.parametrize("scales", [True, False])
def test_what_drops_samples_is_seen_if_it_is_stochastic_depth(scales):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), Drops(0.5, scales), nn.Linear(6, 2)).eval()
    x = torch.randn(16, 4)
    graph_module, _ = capture_with_report(net, (x,))
    names = {node.name for node in graph_module.graph.nodes}
    assert ("stochastic_depth" in names) is scales and ("_1" in names) is not scales
    for training in (False, True):
        torch.manual_seed(1)
        wanted = net.train(training)(x)
        torch.manual_seed(1)
        assert torch.equal(graph_module.train(training)(x), wanted)
