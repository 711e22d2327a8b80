"""Which channels of a network belong together, and how some of them are removed."""

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
