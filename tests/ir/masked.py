"""The masked network that a pruned one must equal, and small networks to try it on."""

import copy

import torch
from torch import nn

from chainfx.ir import edit
from chainfx.ir.capture import capture
from chainfx.ir.surgery import prune

TOLERANCE = 1e-10


def mask_readers(graph_module, analysis, keep):
    """Zero, in every layer, the weight columns that read a removed channel."""
    for node in edit.layers_of(graph_module):
        path, dim = str(edit.origin(node.args[1]).target), int(node.target not in edit.TRANSPOSED)
        for group in analysis.groups:
            gone = torch.ones(group.size, dtype=torch.bool)
            gone[keep[group.name]] = False
            for member in group.members:
                if (member.path, member.dim) == (path, dim):
                    positions = torch.from_numpy(member.positions)[gone[torch.from_numpy(member.units)]]
                    edit.get_tensor(graph_module, path).data.index_fill_(dim, positions, 0)


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
    return {g.name: torch.randperm(g.size)[: max(1, int(g.size * (1 - ratio)))] for g in analysis.groups}


def assert_equals_masked(graph_module, analysis, keep, inputs):
    """Prune a copy, mask a copy, compare; also the shapes and counts that the analysis promised."""
    pruned, masked = copy.deepcopy(graph_module), copy.deepcopy(graph_module)
    before = {name: value.clone() for name, value in graph_module.state_dict().items()}
    prune(pruned, analysis, keep)
    mask_readers(masked, analysis, keep)
    with torch.no_grad():
        found, wanted = outputs(pruned(*inputs)), outputs(masked(*inputs))
    assert len(found) == len(wanted) > 0
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max()) <= TOLERANCE * float(theirs.abs().max())
        assert float(theirs.abs().max()) > 0
    assert list(pruned.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in graph_module.state_dict().items())
    return pruned


def captured(model, *shapes):
    torch.manual_seed(0)
    inputs = tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return capture(randomize(model.double().eval()), inputs), inputs


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
