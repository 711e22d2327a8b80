"""The masked network that a pruned one must equal, and small networks to try it on."""

import copy

import torch
from torch import nn

from chainfx.ir.capture.ways import capture
from chainfx.ir.channels.surgery import prune
from tests.ir.channels.absence import AbsentNetwork

TOLERANCE = 1e-10


def randomize(model):
    """BatchNorm with statistics and affine values that matter, and no layer that starts at zero."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return model


def outputs(value):
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [tensor for each in values if each is not None for tensor in outputs(each)]


def random_keep(analysis, ratio):
    return {g.name: torch.randperm(g.size)[: max(1, int(g.size * (1 - ratio) + 1e-9))] for g in analysis.groups}


def difference(found, wanted):
    """The largest difference of two outputs relative to the largest value of each tensor; shapes must agree."""
    found, wanted = outputs(found), outputs(wanted)
    assert len(found) == len(wanted) > 0
    worst = 0.0
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert theirs.isfinite().all(), "an output of the masked network lacks channels or is not finite"
        assert float(theirs.abs().max()) > 0
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    return worst


def masked_outputs(graph_module, analysis, keep, inputs):
    """What the pruned network must compute, and the MACs of each node that it must have, for the whole batch."""
    masked = AbsentNetwork(graph_module, analysis, keep)
    return masked.run(*inputs), masked.macs


def planned_shapes(graph_module, analysis, keep):
    """The shape of every entry of the state dict after the removal, from the members of the groups alone."""
    for group in analysis.groups:
        assert all(set(m.units.tolist()) == set(range(group.size)) for m in group.members), f"{group.name}: lost units"
    removed = AbsentNetwork(graph_module, analysis, keep).removed
    shapes = {}
    for path, tensor in graph_module.state_dict(keep_vars=True).items():
        shapes[path] = list(tensor.shape)
        for dim, positions in removed.get(id(tensor), ()):
            shapes[path][dim] -= len(positions)
    return shapes


def assert_equals_masked(graph_module, analysis, keep, inputs):
    """Prune a copy, mask the original, compare; also the shapes that the analysis promised."""
    before = {name: value.clone() for name, value in graph_module.state_dict().items()}
    pruned = copy.deepcopy(graph_module)
    prune(pruned, analysis, keep)
    wanted, _ = masked_outputs(graph_module, analysis, keep, inputs)
    with torch.no_grad():
        assert difference(pruned(*inputs), wanted) <= TOLERANCE
    assert list(pruned.state_dict()) == list(before)
    shapes = {path: list(tensor.shape) for path, tensor in pruned.state_dict().items()}
    assert shapes == planned_shapes(graph_module, analysis, keep)
    assert all(torch.equal(value, before[name]) for name, value in graph_module.state_dict().items())
    return pruned


def captured(model, *shapes):
    """The graph of a model with random weights, in float64, and its inputs: given, or random of the shapes given."""
    torch.manual_seed(0)
    inputs = tuple(s if isinstance(s, torch.Tensor) else torch.randn(s, dtype=torch.float64) for s in shapes)
    return capture(randomize(model.double().eval()), inputs, compare=False), inputs


X = (2, 3, 4, 4)


class Net(nn.Module):
    """Layers by name; ``forward(m, y, x)`` stands between layer ``a``, which makes y from x, and layer ``z``."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.body = forward
        for name, layer in ({"a": conv(3, 8), "z": conv(8, 2)} | layers).items():
            if isinstance(layer, torch.Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)

    def forward(self, x):
        y = self.body(self, self.a(x), x)
        return y if self.z is None else self.z(y)


def conv(inputs, out, size=3, **options):
    return nn.Conv2d(inputs, out, size, padding=size // 2, **options)


def param(*shape):
    return nn.Parameter(torch.randn(*shape))


def shuffle(x, groups):
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)
