"""The channel analysis: which channels of a network go together, and which cannot be removed.

It needs the graph and the shapes of its tensors, but no data, no gradients, and no rules for particular networks. Every
output channel of a layer gets a number. These numbers travel through the graph in *label tensors*, which torch's own
view functions move as they move activations, and where an operator combines two channels, the two are coupled. A small
worked example stands in :mod:`chainfx.ir.channels`.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.fx import GraphModule

from chainfx.errors import InputError
from chainfx.ir.channels.groups import Grouping
from chainfx.ir.channels.result import (
    Axis,
    ChannelAnalysis,
    ChannelGroup,
    FrozenChannels,
    Member,
    SizeLiteral,
    SourceLayer,
)
from chainfx.ir.channels.rules import rule_of
from chainfx.ir.channels.walk import Flow, Fold
from chainfx.ir.graph import evaluating, propagate_shapes

__all__ = [
    "Axis",
    "ChannelAnalysis",
    "ChannelGroup",
    "Fold",
    "FrozenChannels",
    "Member",
    "SizeLiteral",
    "SourceLayer",
    "analyse_channels",
]


def analyse_channels(
    graph_module: GraphModule, example_inputs: Sequence[Tensor], fold: Fold = "width"
) -> ChannelAnalysis:
    """Find the channel groups of a graph in train form.

    ``example_inputs`` are positional, batch first; only their shapes matter. ``fold`` says what is kept of queries,
    keys and values, whose channels attention sees as (heads, width): ``"width"``, the same positions in every head, or
    ``"heads"``, whole heads. The outputs of the network, its inputs, and whatever meets an operator that has no rule
    are frozen, with the reason. Raises :class:`InputError` when the network does not accept the inputs, or for another
    ``fold``.

    >>> import torch
    >>> from torch import nn
    >>> from chainfx.ir.capture import capture
    >>> x = torch.zeros(1, 3, 8, 8)
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    >>> print(analyse_channels(capture(model, (x,)), (x,)))
    channel groups: 1, units: 4; 99.0 % of the parameters (192 of 194) lie in them
      _0: 4 units, made by _0; 7 parameter dimensions of 192 parameters
      frozen _3: 2 channels, it is an output of the network
    """
    if fold not in ("width", "heads"):
        raise InputError(f"fold is {fold!r}, but channels of attention are kept by 'width' or by 'heads'.")
    with evaluating(graph_module) as modules:
        _shapes(graph_module, example_inputs, modules)
        flow = Flow(graph_module, modules, fold)
        flow.run(rule_of)
    return Grouping(flow).analysis()


def _shapes(graph_module: GraphModule, example_inputs: Sequence[Tensor], modules: Mapping[str, nn.Module]) -> None:
    """Put the shapes of all nodes into the graph: for one sample, or for the whole batch if the graph fixes its size.

    One sample is enough, since all have the same channels, and keeps label tensors small.
    """
    try:
        propagate_shapes(graph_module, [each[:1] for each in example_inputs], modules)
    except (InputError, IndexError):
        propagate_shapes(graph_module, example_inputs, modules)
