"""Removed channels that were constants: the pruned network equals the ORIGINAL one wherever that is promised."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainfx.ir.capture.ways import capture
from chainfx.ir.channels.analyse import analyse_channels
from chainfx.passes.base import PassContext
from chainfx.passes.prune_channels import PruneChannels
from chainfx.passes.pruning.constants import constants_of
from chainfx.passes.pruning.weights import Weights
from chainfx.passes.quantize import Quantize

BETA = torch.tensor([0.7, -0.4, 1.3, 0.0, 2.0, -1.1, 0.5, 0.9])
DEAD = [0, 1, 2, 3]


def norm(channels=8, dead=DEAD):
    """A BatchNorm with statistics that matter, whose ``dead`` channels have a scale of exactly 0."""
    module = nn.BatchNorm2d(channels)
    module.running_mean.normal_()
    module.running_var.uniform_(0.5, 2)
    module.weight.data.uniform_(0.5, 1.5)
    module.weight.data[dead] = 0
    module.bias.data.copy_(BETA.repeat(channels // 8))
    return module


def conv(inputs, outputs, size=1, **options):
    return nn.Conv2d(inputs, outputs, size, **options)


class Gate(nn.Module):
    """A squeeze-and-excitation gate times a constant channel is a constant only where the channel is 0."""

    def __init__(self):
        super().__init__()
        self.a, self.n, self.g, self.z = conv(3, 8), norm(), conv(3, 8), conv(8, 2)

    def forward(self, x):
        return self.z(F.relu(self.n(self.a(x))) * torch.sigmoid(self.g(x.mean((2, 3), keepdim=True))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b, self.m, self.z = conv(3, 8), norm(), conv(8, 8), norm(), conv(8, 2)

    def forward(self, x):
        x = self.n(self.a(x))
        return self.z(x + self.m(self.b(F.relu(x))))


class Cat(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b, self.m, self.z = conv(3, 8), norm(), conv(3, 8), norm(), conv(16, 2)

    def forward(self, x):
        left, right = self.n(self.a(x)), self.m(self.b(x))
        return self.z(torch.cat([F.silu(left), 2 * F.hardtanh(right, -0.3, 0.6) + 1], 1))


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def head(*layers, flat=8):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 3))


EXACT = {
    "linear": lambda: head(conv(3, 8, 3), norm(), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
    "sign": lambda: head(conv(3, 8, 3), norm(), Apply(torch.sign), nn.AdaptiveAvgPool2d(1)),
    "other functions": lambda: head(
        conv(3, 8, 3), norm(), nn.Tanhshrink(), Apply(torch.cos), nn.AlphaDropout(), flat=128
    ),
    "flattened": lambda: head(conv(3, 8, 3), norm(), nn.Tanh(), nn.MaxPool2d(2), flat=32),
    "valid convolution": lambda: nn.Sequential(conv(3, 8), norm(), nn.GELU(), conv(8, 4, 3)),
    "into a BatchNorm": lambda: nn.Sequential(
        *(conv(3, 8), norm(), nn.SiLU(), conv(8, 8, bias=False), norm(dead=[]), nn.ReLU(), conv(8, 2))
    ),
    "grouped": lambda: nn.Sequential(conv(3, 8), norm(dead=[0, 1, 4, 5]), nn.Sigmoid(), conv(8, 4, 3, groups=2)),
    "zero under padding": lambda: nn.Sequential(conv(3, 8), norm(dead=[1, 3, 5]), nn.ReLU(), conv(8, 4, 3, padding=1)),
    "dead filters": lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4, 3)),
    "dead filters in two layers": lambda: nn.Sequential(nn.Linear(5, 8), nn.ELU(), nn.Dropout(), nn.Linear(8, 3)),
    "gate": Gate,
    "residual": Residual,
    "cat": Cat,
}


def prepared(model):
    rows = 4 if isinstance(model, nn.Sequential) and isinstance(model[0], nn.Linear) else None
    x = (torch.randn(rows, 5).double(),) if rows else (torch.randn(4, 3, 6, 6).double(),)
    graph_module = copy.deepcopy(capture(model.double().eval(), x))
    return graph_module, PassContext(graph_module, x, calibration=[x])


def kill(model, dead=DEAD):
    """Filters of zeros, which give their biases."""
    layer = model[0]
    layer.weight.data[dead] = 0
    return model


@pytest.mark.parametrize("name", EXACT)
def test_constants_go_into_the_next_layer_exactly(name):
    torch.manual_seed(0)
    model = EXACT[name]()
    if name.startswith("dead filters"):
        kill(model)
    graph_module, context = prepared(model)
    x = torch.randn(9, *context.example_inputs[0].shape[1:], dtype=torch.float64)
    wanted = graph_module(x)
    importance = "l1" if name.startswith(("dead", "gate")) else "bn"
    ratio = {"zero under padding": 0.375, "gate": 0.25}.get(name, 0.5)
    if name == "gate":
        graph_module.get_parameter("n.weight").data[[0, 2]] = 1
        graph_module.get_parameter("n.bias").data[[1, 3]] = 0
        graph_module.get_parameter("a.weight").data[[1, 3]] *= 1e-9
        graph_module.get_parameter("g.weight").data[[1, 3]] *= 1e-9
        graph_module.get_parameter("z.weight").data[:, [1, 3]] *= 1e-9
        wanted = graph_module(x)
    keys = list(graph_module.state_dict())
    if importance == "bn" and name in ("into a BatchNorm", "cat", "residual"):
        step = PruneChannels(ratio, "bn", include=("0",) if name == "into a BatchNorm" else ())
    else:
        step = PruneChannels(ratio, importance)
    result = step.apply(copy.deepcopy(graph_module), context)
    assert result.modified and list(result.graph_module.state_dict()) == keys
    assert not any("constants" in each.reason for each in result.skipped)
    torch.testing.assert_close(result.graph_module(x), wanted, rtol=1e-10, atol=1e-10)


def test_it_would_fail_without_the_folding(monkeypatch):
    torch.manual_seed(0)
    graph_module, context = prepared(EXACT["linear"]())
    monkeypatch.setattr("chainfx.passes.prune_channels.fold_removed", lambda *args: ((), ()))
    result = PruneChannels(0.5, "bn").apply(copy.deepcopy(graph_module), context)
    x = context.example_inputs[0]
    assert (result.graph_module(x) - graph_module(x)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (lambda: [conv(8, 2, 3, padding=1)], "it pads with zeros, so that they differ at the border"),
        (lambda: [conv(8, 2, 3, padding="same")], "it pads with zeros, so that they differ at the border"),
        (lambda: [conv(8, 2, bias=False)], "it has neither a bias of its own nor a BatchNorm after it"),
        (
            lambda: [nn.ConvTranspose2d(8, 2, 3)],
            "it is a transposed convolution, whose border differs",
        ),
    ],
)
def test_what_cannot_be_exact_is_said(layers, reason):
    torch.manual_seed(0)
    graph_module, context = prepared(nn.Sequential(conv(3, 8), norm(), nn.ReLU(), *layers()))
    result = PruneChannels(0.5, "bn").apply(copy.deepcopy(graph_module), context)
    (said,) = (each for each in result.skipped if "constants" in each.reason)
    assert (said.node, said.reason) == ("_3", f"2 removed inputs were constants that are lost: {reason}")
    assert result.profile["folded"] == []


def test_a_shared_bias_is_left_alone():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.n, self.z = conv(3, 8), norm(), conv(8, 8)
            self.last = conv(8, 2)

        def forward(self, x):
            x = F.relu(self.n(self.a(x)))
            return self.last(self.z(self.z(x)))

    torch.manual_seed(0)
    graph_module, context = prepared(Shared())
    result = PruneChannels(0.5, "bn", include=("a",)).apply(copy.deepcopy(graph_module), context)
    assert {each.reason.partition(": ")[2] for each in result.skipped if "constants" in each.reason} <= {
        "it has neither a bias of its own nor a BatchNorm after it"
    }


def test_constants_are_what_the_network_computes():
    """Every value that is called constant is what the node gives, for each input and place."""
    torch.manual_seed(0)
    for name, make in EXACT.items():
        graph_module, context = prepared(kill(make()) if name.startswith("dead filters") else make())
        analyse_channels(graph_module, context.example_inputs)
        known = constants_of(Weights(graph_module))
        seen = {}

        class Record(torch.fx.Interpreter):
            def run_node(self, n, seen=seen):
                seen[n] = super().run_node(n)
                return seen[n]

        Record(graph_module).run(torch.randn_like(context.example_inputs[0]))
        assert known
        for node, constants in known.items():
            for channel in (~constants.values.isnan()).nonzero()[:, 0].tolist():
                values = seen[node].select(constants.axis, channel)
                torch.testing.assert_close(values, constants.values[channel].expand_as(values), rtol=1e-12, atol=1e-12)


def test_numbers_and_modules_without_tensors_are_no_constants():
    class Sizes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.n, self.act, self.z = conv(3, 8), norm(), nn.ReLU(), nn.Linear(8 * 36, 2)

        def forward(self, x):
            x = self.act(self.n(self.a(x)))
            return self.z(x.view(x.size(0), x.size(1) * x.size(2) * (x.size(3) + 0)))

    torch.manual_seed(0)
    graph_module, context = prepared(Sizes())
    result = PruneChannels(0.5, "bn").apply(copy.deepcopy(graph_module), context)
    assert result.graph_module.get_parameter("z.weight").shape == (2, 4 * 36)


def test_a_channel_that_trains_is_no_constant():
    torch.manual_seed(0)
    graph_module, context = prepared(nn.Sequential(conv(3, 8), norm(dead=[]), nn.ReLU(), conv(8, 2)))
    analyse_channels(graph_module, context.example_inputs)
    assert constants_of(Weights(graph_module)) == {}


def test_a_filter_that_is_rounded_to_zeros_is_a_constant():
    torch.manual_seed(0)
    graph_module, context = prepared(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 2)))
    graph_module.get_parameter("0.weight").data[[1, 4]] *= 1e-3
    context = PassContext(graph_module, context.example_inputs, calibration=[context.example_inputs])
    step = Quantize(4, 32, scheme="uniform", granularity="tensor", first=4, last=4)
    graph_module = step.apply(graph_module, context).graph_module
    analyse_channels(graph_module, context.example_inputs)
    known = {node.name: constants for node, constants in constants_of(Weights(graph_module)).items()}
    bias = graph_module.get_parameter("0.bias").detach()
    wanted = torch.full((8,), float("nan"), dtype=bias.dtype)
    wanted[[1, 4]] = bias[[1, 4]]
    torch.testing.assert_close(known["_0"].values, wanted, equal_nan=True)


def test_an_input_that_a_transposed_convolution_ignores_is_no_constant():
    torch.manual_seed(0)
    graph_module, context = prepared(nn.Sequential(conv(3, 8), nn.ConvTranspose2d(8, 8, 2), conv(8, 2)))
    graph_module.get_parameter("1.weight").data[3] = 0
    analyse_channels(graph_module, context.example_inputs)
    assert constants_of(Weights(graph_module)) == {}
