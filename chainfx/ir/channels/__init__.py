"""Which channels of a network belong together, and how some of them are removed.

Take a network of five nodes: an input ``x``, two convolutions that read it, their sum, and a convolution that reads
the sum.

>>> import torch
>>> from torch import nn
>>> from chainfx.ir.capture import capture
>>> class Sum(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
...         self.c = nn.Conv2d(4, 2, 1)
...
...     def forward(self, x):
...         return self.c(self.a(x) + self.b(x))
>>> x = torch.zeros(1, 3, 8, 8)
>>> graph_module = capture(Sum(), (x,))

Channel 0 of ``a`` cannot go alone: it is added to channel 0 of ``b``, so these two are *coupled* and go together. What
also goes is whatever belongs to them: their filters (index 0 along dimension 0 of both weights), their biases, and what
``c`` reads of their sum (index 0 along dimension 1 of its weight). Together this is one *unit*: it can be removed, and
what is left is a smaller network. The four units that arise here in the same way are a *dependency group*, which is
named after the first layer that makes its channels.

:func:`analyse_channels` finds the groups by a walk over the graph in which every channel has a number, its *label*.
Here ``a`` makes channels 1 to 4 and ``b`` makes channels 5 to 8; the sum meets 1 and 5, 2 and 6, 3 and 7, 4 and 8, and
couples them; ``c`` reads the sum, so its weight takes part along dimension 1, and makes channels 9 and 10. These are an
output of the network, so they must stay: they are *frozen*, and the analysis says why.

>>> analysis = analyse_channels(graph_module, (x,))
>>> print(analysis)
channel groups: 1, units: 4; 95.2 % of the parameters (40 of 42) lie in them
  a: 4 units, made by a, b; 5 parameter dimensions of 40 parameters
  frozen c: 2 channels, it is an output of the network
>>> [(member.path, member.dim) for member in analysis.group("a").members]
[('a.weight', 0), ('a.bias', 0), ('b.weight', 0), ('b.bias', 0), ('c.weight', 1)]

:func:`prune` then keeps the units that are named, here the first and the third.

>>> prune(graph_module, analysis, {"a": [0, 2]})
>>> {name: tuple(parameter.shape) for name, parameter in graph_module.named_parameters() if parameter.dim() > 1}
{'a.weight': (2, 3, 1, 1), 'b.weight': (2, 3, 1, 1), 'c.weight': (2, 2, 1, 1)}

The rules for what each operator does to labels are in :mod:`chainfx.ir.channels.rules`.
"""

from chainfx.ir.channels.analyse import analyse_channels
from chainfx.ir.channels.blocks import Block, ResidualStage, drop_block, stages_of
from chainfx.ir.channels.result import (
    Axis,
    ChannelAnalysis,
    ChannelGroup,
    FrozenChannels,
    Member,
    SizeLiteral,
    SourceLayer,
)
from chainfx.ir.channels.surgery import prune
from chainfx.ir.channels.walk import Fold

__all__ = [
    "Axis",
    "Block",
    "ChannelAnalysis",
    "ChannelGroup",
    "Fold",
    "FrozenChannels",
    "Member",
    "ResidualStage",
    "SizeLiteral",
    "SourceLayer",
    "analyse_channels",
    "drop_block",
    "prune",
    "stages_of",
]
