"""Channel groups are found, and the pruned network equals the original whose layers ignore the removed channels."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from chainfx import zoo
from chainfx.ir.channels.analyse import analyse_channels
from chainfx.ir.graph import layers_of
from chainfx.ir.graph.shapes import propagate_shapes
from tests.budget import examples, mostly_slow
from tests.ir.channels.masked import Net, X, assert_equals_masked, captured, conv, param, random_keep, shuffle


def gate(m, y, x):
    return torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1))))) * y


def chunk_apart(m, y, x):
    left, right = y.chunk(2, 1)
    return torch.cat([left, m.b(right)], 1)


def chunk_gate(m, y, x):
    left, right = y.chunk(2, 1)
    return left * torch.sigmoid(right)


def unequal_split(m, y, x):
    left, right = torch.split(y, [3, 5], dim=1)
    return torch.cat([m.b(left), right], 1)


def half_slices(m, y, x):
    return torch.cat([y[:, :4], F.relu(m.b(y[:, 4:]))], 1)


def slices_without_parameters(m, y, x):
    return torch.cat([F.relu(y[:, :3]), y[:, 3:]], 1)


def computed_fold(m, y, x):
    n, c, h, w = y.shape
    return y.view(n, c // 4, 4, h, w).sum(1)


def literal_view(m, y, x):
    return y.view(-1, 8, 16).view(-1, 8, 4, 4).reshape(-1, 128)


def sizes_read(m, y, x):
    n, c, h, w = y.shape
    return y.view(n, c, h * w).mean(2).reshape(n, c, 1, 1).expand(n, c, h, w)


def tokens_with_class(m, y, x):
    tokens = y.flatten(2).transpose(1, 2)
    tokens = torch.cat([m.token.expand(tokens.shape[0], -1, -1), tokens], 1) + m.position
    return F.relu(m.b(tokens))[:, 0]


class Renamed(nn.Softplus):
    """Somebody's own class, whose forward is torch's."""


def itself(m, y, x):
    return y


PRUNABLE = {
    "chain": (Net(lambda m, y, x: y.relu()), [8]),
    "batch norm": (Net(lambda m, y, x: m.n(y), n=nn.BatchNorm2d(8)), [8]),
    "functions of one element": (Net(lambda m, y, x: torch.sinh(y.atan()) + torch.log10(y.square() + 1)), [8]),
    "functions of two": (Net(lambda m, y, x: torch.hypot(y, torch.fmax(m.b(x), y)), b=conv(3, 8)), [8]),
    "subclass of an activation": (Net(lambda m, y, x: m.n(y), n=Renamed()), [8]),
    "instance norm": (Net(lambda m, y, x: m.n(y), n=nn.InstanceNorm2d(8, affine=True)), [8]),
    "plain instance norm": (Net(lambda m, y, x: m.n(y), n=nn.InstanceNorm2d(8)), [8]),
    "prelu": (Net(lambda m, y, x: m.n(y), n=nn.PReLU(8)), [8]),
    "residual add": (Net(lambda m, y, x: y + m.b(x), b=conv(3, 8)), [8]),
    "identity add": (Net(lambda m, y, x: y + m.b(F.relu(y)), b=conv(8, 8)), [8]),
    "mul": (Net(lambda m, y, x: y * m.b(x), b=conv(3, 8)), [8]),
    "in-place": (Net(lambda m, y, x: y.add_(m.b(x)).mul_(0.5), b=conv(3, 8)), [8]),
    "cat": (Net(lambda m, y, x: torch.cat([y, x, m.b(x)], 1), b=conv(3, 6), z=conv(17, 2)), [8, 6]),
    "cat with itself": (Net(lambda m, y, x: torch.cat([y, y], 1), z=conv(16, 2)), [8]),
    "cat with some of itself": (
        Net(lambda m, y, x: torch.cat([y, y[:, m.i]], 1), i=torch.tensor([2, 3, 4, 5]), z=conv(12, 2)),
        [4, 4],
    ),
    "sum with what is learnt": (
        Net(lambda m, y, x: y + m.b(m.s), b=conv(6, 8), s=param(1, 6, 4, 4)),
        [8],
    ),
    "cat of chunks": (Net(lambda m, y, x: torch.cat(y.chunk(2, 1), 1)), [4, 4]),
    "stack": (Net(lambda m, y, x: torch.stack([y, m.b(x)], 1).sum(1), b=conv(3, 8)), [8]),
    "depthwise": (Net(lambda m, y, x: m.b(y), b=conv(8, 8, groups=8)), [8]),
    "depthwise multiplier": (Net(lambda m, y, x: m.b(y), b=conv(8, 16, groups=8), z=conv(16, 2)), [8]),
    "grouped": (Net(lambda m, y, x: m.b(y), b=conv(8, 12, groups=2), z=conv(12, 2)), [4, 6]),
    "transposed": (Net(lambda m, y, x: m.b(y), b=nn.ConvTranspose2d(8, 6, 2, 2), z=conv(6, 2)), [8, 6]),
    "transposed grouped": (
        Net(lambda m, y, x: m.b(y), b=nn.ConvTranspose2d(8, 6, 2, 2, groups=2), z=conv(6, 2)),
        [4, 3],
    ),
    "transposed depthwise": (Net(lambda m, y, x: m.b(y), b=nn.ConvTranspose2d(8, 8, 2, 2, groups=8)), [8]),
    "flatten to linear": (Net(lambda m, y, x: y.flatten(1), z=nn.Linear(128, 2)), [8]),
    "flatten module": (nn.Sequential(conv(3, 8), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 2)), [8]),
    "linear to image": (
        nn.Sequential(nn.Flatten(), Net(lambda m, y, x: y.view(-1, 8, 2, 2), a=nn.Linear(48, 32))),
        [8],
    ),
    "squeeze and excite": (Net(gate, down=conv(8, 4, 1), up=conv(4, 8, 1)), [8, 4]),
    "spatial gate": (Net(lambda m, y, x: y * torch.sigmoid(m.g(y)), g=conv(8, 1)), [8]),
    "channel shuffle": (Net(lambda m, y, x: shuffle(y, 2)), [4]),
    "native shuffle": (nn.Sequential(conv(3, 12), nn.ChannelShuffle(3), conv(12, 2)), [4]),
    "pixel shuffle": (nn.Sequential(conv(3, 16), nn.PixelShuffle(2), conv(4, 2)), [4]),
    "pixel unshuffle": (nn.Sequential(conv(3, 8), nn.PixelUnshuffle(2), conv(32, 2)), [8]),
    "chunk": (Net(chunk_gate, z=conv(4, 2)), [4]),
    "chunk apart": (Net(chunk_apart, b=conv(4, 6), z=conv(10, 2)), [4, 4, 6]),
    "split": (Net(unequal_split, b=conv(3, 3)), [3, 5, 3]),
    "slices": (Net(half_slices, b=conv(4, 4)), [4, 4, 4]),
    "slices without parameters": (Net(slices_without_parameters), [3, 5]),
    "computed fold": (Net(computed_fold, z=conv(4, 2)), [4]),
    "glu": (Net(lambda m, y, x: F.glu(y, 1), z=conv(4, 2)), [4]),
    "layer scale": (Net(lambda m, y, x: m.s * y, s=param(8, 1, 1)), [8]),
    "position table": (Net(lambda m, y, x: y + m.s, s=param(1, 8, 4, 4)), [8]),
    "buffer": (Net(lambda m, y, x: (y - m.s) / 2, s=torch.randn(8, 1, 1)), [8]),
    "spatial parameter": (Net(lambda m, y, x: y * m.s, s=param(1, 1, 4, 4)), [8]),
    "class token": (
        Net(tokens_with_class, token=param(1, 1, 8), position=param(1, 17, 8), b=nn.Linear(8, 6), z=nn.Linear(6, 2)),
        [8, 6],
    ),
    "shared module": (Net(lambda m, y, x: m.b(F.relu(m.b(y))), b=conv(8, 8)), [8]),
    "two inputs of one layer": (Net(lambda m, y, x: m.c(y) + m.c(m.b(x)), b=conv(3, 8), c=conv(8, 8)), [8, 8]),
    "literal view": (Net(literal_view, z=nn.Linear(128, 2)), [8]),
    "sizes read": (Net(sizes_read), [8]),
    "permute and linear": (Net(lambda m, y, x: y.permute(0, 2, 3, 1), z=nn.Linear(8, 2)), [8]),
    "zero channel padding": (
        Net(lambda m, y, x: m.b(y) + F.pad(y, (0, 0, 0, 0, 2, 2)), b=conv(8, 12), z=conv(12, 2)),
        [8],
    ),
    "spatial padding": (nn.Sequential(conv(3, 8), nn.ReflectionPad2d(1), nn.ConstantPad2d(1, 0.5), conv(8, 2)), [8]),
    "roll and flip": (Net(lambda m, y, x: torch.flip(torch.roll(y, (1, 2), (2, 3)), (1,))), [8]),
    "resize": (Net(lambda m, y, x: F.interpolate(F.avg_pool2d(y, 2), scale_factor=2)), [8]),
    "spatial mean": (Net(lambda m, y, x: y.mean((2, 3)), z=nn.Linear(8, 2)), [8]),
    "expand as": (Net(lambda m, y, x: y.mean((2, 3), True).expand_as(y) + y), [8]),
    "1d without bias": (
        nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv1d(8, 2, 1)),
        [8],
    ),
    "two outputs": (Net(lambda m, y, x: (m.e(y.mean((2, 3))), m.o(y)), e=nn.Linear(8, 4), o=conv(8, 2), z=None), [8]),
}


@pytest.mark.parametrize("name", PRUNABLE)
def test_pruned_equals_masked(name):
    model, sizes = PRUNABLE[name]
    graph_module, inputs = captured(copy.deepcopy(model), X)
    analysis = analyse_channels(graph_module, inputs)
    assert [group.size for group in analysis.groups] == sizes, str(analysis)
    for ratio in (0.3, 0.5, 0.9):
        pruned = assert_equals_masked(graph_module, analysis, random_keep(analysis, ratio), inputs)
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in graph_module.parameters())


def opaque(x):
    return x.cumsum(1)


torch.fx.wrap("opaque")


def outer(m, y, x):
    return (m.b(x).unsqueeze(2) * y.unsqueeze(1)).flatten(1, 2)


INDEXED = "it is indexed by position"
AS_INDEX = "it is used as an index"

FROZEN = {
    "output": (Net(itself, z=None), "it is an output of the network"),
    "softmax": (Net(lambda m, y, x: torch.softmax(y, 1)), "softmax is taken over its channels"),
    "mean": (Net(lambda m, y, x: y.mean(1, keepdim=True), z=conv(1, 2)), "mean is taken over its channels"),
    "input": (Net(lambda m, y, x: y + x, a=conv(3, 3), z=conv(3, 2)), "it meets a tensor whose size is fixed"),
    "outer product": (Net(outer, b=conv(3, 8), z=conv(64, 2)), "it is broadcast over other channels"),
    "one channel": (Net(lambda m, y, x: y[:, 3].flatten(1), z=nn.Linear(16, 2)), INDEXED),
    "strided off the block": (Net(lambda m, y, x: y[:, 1::3], a=conv(3, 7), z=conv(2, 2)), INDEXED),
    "neighbours": (Net(lambda m, y, x: F.local_response_norm(y, 3)), "it is normalized with its neighbours"),
    "rolled channels": (Net(lambda m, y, x: torch.roll(y, 1, 1)), "its channels are rolled"),
    "size used": (Net(lambda m, y, x: y * y[0].numel()), "a number of channels is used in its arithmetic"),
    "embedded": (Net(lambda m, y, x: m.e(y.argmax(-1)), e=nn.Embedding(9, 6), z=nn.Linear(6, 2)), AS_INDEX),
    "index": (Net(lambda m, y, x: m.t[y.argmax(-1)], t=param(9, 6), z=nn.Linear(6, 2)), AS_INDEX),
    "index of a selection": (
        Net(lambda m, y, x: m.t.index_select(0, y.flatten(1).argmax(0)), t=param(9, 6), z=nn.Linear(6, 2)),
        AS_INDEX,
    ),
    "wrapped function": (Net(lambda m, y, x: opaque(y)), "the channel analysis has no rule for 'opaque'"),
    "computed weight": (
        Net(lambda m, y, x: F.conv2d(y, m.w.expand(8, 8, 1, 1)), w=param(8, 1, 1, 1)),
        "its weight is computed",
    ),
    "one unit": (Net(lambda m, y, x: y + y.flip(1), a=conv(3, 2), z=conv(2, 2)), "all its channels are one unit"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_with_reason(name):
    model, reason = FROZEN[name]
    graph_module, inputs = captured(copy.deepcopy(model), X)
    analysis = analyse_channels(graph_module, inputs)
    found = {each.path: each for each in analysis.frozen}
    assert "a.weight" not in {s.path for g in analysis.groups for s in g.sources}
    assert found["a.weight"].reason.partition(" (node ")[0] == reason
    assert_equals_masked(graph_module, analysis, random_keep(analysis, 0.5), inputs)


def test_prints_readably():
    graph_module, inputs = captured(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 2)), X)
    first, last = (layer.name for layer in layers_of(graph_module))
    assert str(analyse_channels(graph_module, inputs)) == (
        "channel groups: 1, units: 4; 99.0 % of the parameters (192 of 194) lie in them\n"
        f"  {first}: 4 units, made by {first}; 7 parameter dimensions of 192 parameters\n"
        f"  frozen {last}: 2 channels, it is an output of the network"
    )


NETWORKS = {
    "resnet18": ({}, 64, 1),
    "mobilenet_v2": ({"width_mult": 0.35}, 64, 1),
    "mobilenet_v3_small": ({}, 64, 1),
    "shufflenet_v2_x0_5": ({}, 64, 11),
    "efficientnet_b0": ({}, 64, 1),
    "regnet_y_400mf": ({}, 64, 1),
    "googlenet": ({"init_weights": False, "aux_logits": False}, 64, 1),
    "squeezenet1_1": ({}, 64, 1),
}


def network(name):
    import torchvision

    if name == "densenet":
        return torchvision.models.DenseNet(8, (2, 3, 2), 16), 64, 1
    if name == "vit":
        return torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 64), 32, 1
    options, size, frozen = NETWORKS[name]
    return getattr(torchvision.models, name)(**options), size, frozen


QUICK = ("squeezenet1_1", "densenet", "vit")


@pytest.mark.parametrize("name", mostly_slow([*NETWORKS, "densenet", "vit"], QUICK))
def test_known_networks(name):
    torch.manual_seed(0)
    model, size, frozen = network(name)
    graph_module, inputs = captured(model, (2, 3, size, size))
    analysis = analyse_channels(graph_module, inputs)
    assert len(analysis.frozen) == frozen, str(analysis)
    for ratio in (0.3, 0.5):
        assert_equals_masked(graph_module, analysis, random_keep(analysis, ratio), inputs)


ZOO = {
    "resnet-b": lambda: zoo.resnet(blocks=(2, 2, 1), width=8),
    "resnet-a": lambda: zoo.resnet(blocks=(2, 2, 1), width=8, shortcut="A"),
    "vgg": lambda: zoo.vgg(layers=(1, 2, 1), width=8),
    "mobilenet": lambda: zoo.mobilenet_v2(width=0.25),
}


@pytest.mark.parametrize("name", ZOO)
def test_every_family_of_the_zoo(name):
    torch.manual_seed(0)
    graph_module, inputs = captured(ZOO[name](), (2, 3, 32, 32))
    analysis = analyse_channels(graph_module, inputs)
    assert analysis.groups
    for ratio in (0.3, 0.5):
        assert_equals_masked(graph_module, analysis, random_keep(analysis, ratio), inputs)


BLOCKS = (
    "conv",
    "residual",
    "cat",
    "depthwise",
    "grouped",
    "gate",
    "shuffle",
    "chunk",
    "slice",
    "scale",
    "view",
    "up",
    "token",
)


class RandomNet(nn.Module):
    """A chain of blocks drawn by name; every block takes and gives 12 channels at the same resolution."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks
        self.stem = conv(3, 12)
        self.one = nn.ModuleList(conv(12, 12) for _ in blocks)
        self.two = nn.ModuleList(self._second(block) for block in blocks)
        self.norm = nn.ModuleList(nn.BatchNorm2d(12) for _ in blocks)
        self.scale = nn.ParameterList(param(12, 1, 1) for _ in blocks)
        self.head = nn.Linear(12 * 16, 3)

    @staticmethod
    def _second(block):
        if block in ("depthwise", "grouped"):
            return conv(12, 12, groups=12 if block == "depthwise" else 3)
        shapes = {"cat": (24, 12), "chunk": (6, 6), "slice": (4, 4), "up": (3, 12)}
        return conv(*shapes.get(block, (12, 12)))

    def forward(self, x):
        x = self.stem(x)
        for index, block in enumerate(self.blocks):
            x = self._run(block, x, self.one[index], self.two[index], self.norm[index], self.scale[index])
        return self.head(x.flatten(1))

    def _run(self, block, x, one, two, norm, scale):
        y = F.relu(norm(one(x)))
        if block == "residual":
            return x + two(y)
        if block == "cat":
            return two(torch.cat([y, x], 1))
        if block == "gate":
            return y * torch.sigmoid(two(F.adaptive_avg_pool2d(y, 1)))
        if block == "shuffle":
            return shuffle(two(y), 3)
        if block == "chunk":
            left, right = y.chunk(2, 1)
            return torch.cat([two(left), right], 1)
        if block == "slice":
            return torch.cat([y[:, 4:], two(y[:, :4])], dim=1)
        if block == "scale":
            return x + y * scale
        if block == "view":
            return two(y).view(-1, 12 * 4, 4).view(-1, 12, 4, 4)
        if block == "up":
            return two(F.avg_pool2d(F.pixel_shuffle(y, 2), 2))
        if block == "token":
            return torch.stack(x.flatten(2).transpose(1, 2).unbind(1), 2).view(-1, 12, 4, 4) * y
        return two(y)


@examples(1)
@given(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=5), st.sampled_from((0.3, 0.5, 0.7)), st.integers(0, 99))
def test_random_networks(blocks, ratio, seed):
    torch.manual_seed(seed)
    graph_module, inputs = captured(RandomNet(blocks), X)
    torch.manual_seed(seed)
    analysis = analyse_channels(graph_module, inputs)
    pruned = assert_equals_masked(graph_module, analysis, random_keep(analysis, ratio), inputs)
    propagate_shapes(pruned, inputs)
    assert all(group.size > 1 and group.sources and group.members for group in analysis.groups)
