"""Weights that are computed from parameters become stored ones, and masks of torch.nn.utils.prune become masks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import weight_norm as old_weight_norm

import chainfx
from chainfx.ir.capture import FoldedWeight, capture_with_report
from chainfx.ir.channels import analyse_channels
from chainfx.ir.graph import facts_of, layers_of, ops
from chainfx.passes import PassContext, Quantize
from tests.ir.channels.masked import assert_equals_masked, random_keep

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")


class Standardized(nn.Conv2d):
    """A convolution whose filters have mean 0 and a deviation of their own."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels) + 0.5)

    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=self.gain, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


class Turned(nn.Module):
    """A linear layer whose weight lies the other way round, as in GPT-2."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class Bare(nn.Module):
    """Parameters of its own, without layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.scale = (nn.Parameter(torch.randn(size)) for size in ((8, 6), (3, 8), (8, 1)))

    def forward(self, x):
        return F.linear(F.linear(x, self.first * self.scale), -self.second)


FLAT, IMAGE = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 3, 8, 8, dtype=torch.float64)
CASES = {
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.Linear(8, 3)),
        FLAT,
        [("0.weight", "0.parametrizations.weight.original0", "0.parametrizations.weight.original1")],
    ),
    "old weight norm": (
        lambda: nn.Sequential(old_weight_norm(nn.Linear(6, 8)), nn.Linear(8, 3)),
        FLAT,
        [("0.weight", "0.weight_g", "0.weight_v")],
    ),
    "standardized": (
        lambda: nn.Sequential(Standardized(3, 8, 3), nn.ReLU(), Standardized(8, 2, 3)),
        IMAGE,
        [("0.folded_weight", "0.weight", "0.gain"), ("2.folded_weight", "2.weight", "2.gain")],
    ),
    "turned": (
        lambda: nn.Sequential(Turned(6, 8), Turned(8, 3)),
        FLAT,
        [("0.folded_weight", "0.weight"), ("1.folded_weight", "1.weight")],
    ),
    "bare": (Bare, FLAT, [("folded_first", "first", "scale"), ("folded_second", "second")]),
}


def made(name):
    make, x, folded = CASES[name]
    torch.manual_seed(0)
    return make().double().eval(), x, folded


@pytest.mark.parametrize("name", CASES)
def test_what_is_computed_is_stored_and_reported(name):
    net, x, folded = made(name)
    graph_module, report = capture_with_report(net, (x,))
    assert [(each.path, *sorted(each.sources)) for each in report.folded] == [(path, *sorted(s)) for path, *s in folded]
    assert (report.method, report.opaque, report.dropped, report.aliases) == ("symbolic", (), (), ())
    assert {layer.weight_path for layer in layers_of(graph_module)} >= {path for path, *_ in folded}
    keys, sources = set(graph_module.state_dict()), {source for _, *each in folded for source in each}
    assert not keys & sources, "a checkpoint of the model does not fit by mistake"
    torch.testing.assert_close(graph_module(x), net(x))
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in graph_module.parameters())


@pytest.mark.parametrize("name", CASES)
def test_a_folded_layer_is_pruned_quantized_and_captured_again(name):
    net, x, _ = made(name)
    graph_module = chainfx.capture(net, (x,))
    again = chainfx.capture(graph_module, (x,))
    assert [node.name for node in again.graph.nodes] == [node.name for node in graph_module.graph.nodes]
    analysis = analyse_channels(graph_module, (x,))
    assert [group.size for group in analysis.groups] == [8]
    assert_equals_masked(graph_module, analysis, random_keep(analysis, 0.5), (x,))
    result = Quantize(8, 32, first=None, last=None).apply(graph_module, PassContext(graph_module, (x,)))
    assert result.skipped == ()


def test_a_layer_that_is_called_twice_is_folded_once():
    torch.manual_seed(0)
    layer = parametrizations.weight_norm(nn.Linear(6, 6))
    net = nn.Sequential(layer, nn.ReLU(), layer).double().eval()
    graph_module, report = capture_with_report(net, (FLAT,))
    assert len(report.folded) == 1 and len(list(layers_of(graph_module))) == 2
    torch.testing.assert_close(graph_module(FLAT), net(FLAT))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return F.linear(x, F.dropout(self.w, 0.5, True))


class Shared(nn.Module):
    """A table that is looked up as it is, and read by the last layer in another scale."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 6))

    def forward(self, x):
        return F.linear(F.embedding(x, self.table), self.table * 0.5)


class Factored(nn.Module):
    """A weight that has more elements than what it is computed from."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(6, 1)), nn.Parameter(torch.randn(1, 6))

    def forward(self, x):
        return F.linear(x, self.left @ self.right)


class Made(nn.Module):
    """A weight that depends on the input."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return F.linear(x, self.w * x.mean())


class Constant(nn.Module):
    """A weight without parameters: nothing of it trains."""

    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.randn(6, 6))

    def forward(self, x):
        return F.linear(x, self.w * 2)


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (Noisy, FLAT),
        (Factored, FLAT),
        (Shared, torch.arange(4).view(2, 2)),
        (Made, FLAT),
        (Constant, FLAT),
        (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 4))), FLAT),
    ],
)
def test_what_is_not_the_same_each_time_or_is_read_elsewhere_stays_computed(net, x):
    torch.manual_seed(0)
    net = net().eval()
    x = x.float() if x.is_floating_point() else x
    graph_module, report = capture_with_report(net, (x,), compare=False)
    assert report.folded == ()
    assert graph_module.state_dict().keys() <= net.state_dict().keys()


def masked_network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)).double().eval()
    prune.l1_unstructured(net[0], "weight", 0.5)
    prune.random_unstructured(net[0], "weight", 0.25)
    prune.l1_unstructured(net[0], "bias", 2)
    prune.ln_structured(net[2], "weight", 0.5, n=2, dim=1)
    return net


def test_a_mask_of_torch_becomes_a_mask_of_the_graph():
    net = masked_network()
    graph_module, report = capture_with_report(net, (IMAGE,))
    assert report.folded == (
        FoldedWeight("0.weight", ("0.weight_orig", "0.weight_mask")),
        FoldedWeight("0.bias", ("0.bias_mask", "0.bias_orig")),
        FoldedWeight("2.weight", ("2.weight_orig", "2.weight_mask")),
    )
    masks = facts_of(graph_module).masks
    kept = [int(net[index].weight_mask.sum()) for index in (0, 2)]
    assert [(mask.pattern, mask.kept) for mask in masks.values()] == [("unstructured", number) for number in kept]
    first = next(layers_of(graph_module))
    assert first.tensor is net[0].weight_orig and first.path == "0"
    assert torch.equal(graph_module(IMAGE), net(IMAGE))
    graph_module(IMAGE).sum().backward()
    assert not first.tensor.grad[~graph_module.get_buffer("0.weight_mask")].any()


def test_a_masked_network_is_pruned_and_quantized_and_keeps_its_zeros():
    graph_module = chainfx.capture(masked_network(), (IMAGE,))
    analysis = analyse_channels(graph_module, (IMAGE,))
    pruned = assert_equals_masked(graph_module, analysis, random_keep(analysis, 0.5), (IMAGE,))
    Quantize(4, 32, first=None, last=None).apply(pruned, PassContext(pruned, (IMAGE,)))
    for layer in layers_of(pruned):
        assert layer.mask is not None and layer.weight_quantizer is not None
    assert len(pruned.graph.find_nodes(op="call_function", target=ops.mask_weight)) == 2


def test_the_model_is_left_as_it_was():
    net = masked_network()
    before = copy.deepcopy(net.state_dict())
    chainfx.capture(net, (IMAGE,))
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
