"""Designs as small as can be, for tests."""

import dataclasses

from chainfx.passes import PruneChannels, Quantize
from chainfx.study import Design, Tuning

TINY = Design(
    orders="pairwise",
    passes={"P": (PruneChannels(0.25, round_to=1),), "Q": (Quantize(4, 4),)},
    network={"name": "zoo.resnet", "options": {"blocks": [1], "width": 4, "in_channels": 1}},
    data={"source": "digits", "validation": 0.4},
    seeds=(0,),
    tuning=Tuning(epochs=1, batch_size=512),
    trainings=("paper",),
    tiers=(0.01,),
)


PRUNE, QUANTIZE = (grid[0].label for grid in TINY.passes.values())


def tiny(**changes):
    return dataclasses.replace(TINY, **changes)
