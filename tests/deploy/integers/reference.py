"""A second, plain way to compute what a graph in integers computes: each layer in float64 from its own definition.

The expected value comes from the codes and literals of the call alone: no kernel, no packed weight, no float32.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.fx import Interpreter

from chainfx.deploy.integers.grids import Encode, decode_weights
from chainfx.deploy.integers.layers import IntegerLayer, IntegerMaxPool

NEAR_A_TIE = 1e-3
ACTIVATIONS = {
    "none": lambda y: y,
    "relu": F.relu,
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "swish": F.silu,
}


@dataclass
class Seen:
    """What a run compared: how many codes, how many differed, and how many of these were not near a tie."""

    layers: int = 0
    codes: int = 0
    different: int = 0
    wrong: int = 0
    worst: float = 0.0

    @property
    def is_exact(self):
        return self.wrong == 0 and self.different <= 1 + self.codes / 100_000 and self.worst < 1e-5


def exact_layer(layer, codes, added=None):
    """What an integer layer must give, in float64 and before it is rounded to codes."""
    call, weight = layer.call, layer.weight
    if weight.dtype is torch.uint8:
        weight = decode_weights(weight, call.bits, call.scheme)
    x = codes.double() - call.read.zero_point
    bias = None if layer.bias is None else layer.bias.double()
    scale = layer.scale.double() * call.read.scale
    if call.geometry is None:
        y = x @ weight.double().t() * scale + (0 if bias is None else bias)
    else:
        at = call.geometry
        y = F.conv2d(x, weight.double(), None, at.stride, at.padding, at.dilation, at.groups) * scale[:, None, None]
        y = y if bias is None else y + bias[:, None, None]
    if added is not None:
        y = y + (added.double() if call.added is None else (added.double() - call.added.zero_point) * call.added.scale)
    return ACTIVATIONS[call.activation](y, *call.numbers)


class Compared(Interpreter):
    """Runs a graph, and compares each integer layer with the reference for the same input codes."""

    def __init__(self, graph_module, seen):
        super().__init__(graph_module)
        self.seen = seen

    def call_module(self, target, args, kwargs):
        module = self.fetch_attr(target)
        if isinstance(module, IntegerLayer):
            expected = exact_layer(module, *args)  # first: the second input may be written over
            given = super().call_module(target, args, kwargs)
            self.seen.layers += 1
            self._compare(module.call.written, given, expected)
            return given
        if isinstance(module, IntegerMaxPool):
            size, stride, padding, dilation = module.window
            pooled = F.max_pool2d(args[0].float(), size, stride, padding, dilation, module.ceil_mode)
            assert torch.equal(super().call_module(target, args, kwargs).float(), pooled)
        values = args[0].double() if isinstance(module, Encode) else None  # first: they may be written over
        given = super().call_module(target, args, kwargs)
        if isinstance(module, Encode) and not module.grid.signs:
            self._compare(module.grid, given, values)
        return given

    def _compare(self, grid, given, expected):
        assert given.shape == expected.shape
        if grid is None:
            error = (given - expected).abs().max() if given.numel() else 0.0
            self.seen.worst = max(self.seen.worst, float(error / expected.abs().max().clamp_min(1e-9)))
            return
        shares = (expected / grid.scale + grid.zero_point).clamp(0, grid.greatest)
        different = torch.round(shares) != given
        from_tie = (shares - torch.floor(shares) - 0.5).abs()
        self.seen.codes += given.numel()
        self.seen.different += int(different.sum())
        self.seen.wrong += int((different & (from_tie > NEAR_A_TIE)).sum())


def compared(small, *inputs):
    """Run a network on the int8 engine, segment after segment with whole batches, and compare every integer layer."""
    assert small.engine == "int8"
    seen, values = Seen(), list(inputs)
    with torch.no_grad():
        for index, segment in enumerate(small.segments):
            given = Compared(segment, seen).run(*values)
            values = given[2:] if index < len(small.segments) - 1 else None
    return seen
