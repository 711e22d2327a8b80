"""Values to be shown: cost reports, and the records of a chain of two stages."""

from dataclasses import replace

import torch

from chainfx.bitops import count
from chainfx.ir.capture import capture
from chainfx.scheduler import Costs, StageRecord
from chainfx.zoo import resnet

_BEFORE = Costs("strict", 2_000_000, 4e6, 2e6, 4e6, 8192 * 50, 1234)
ORIGINAL = StageRecord(0, "original", {}, "original", "f0", "", _BEFORE, _BEFORE, metric=None)
_AFTER = replace(_BEFORE, macs=1_000_000, bitops=2e6, expected_bitops=5e5, storage_bits=8192 * 25)
COMPRESSED = StageRecord(1, "early-exit", {}, "early-exit(exits=['a'])", "f1", "f0", _BEFORE, _AFTER, metric=0.9876)


def report_of(model, *sizes, **options):
    inputs = (torch.zeros(sizes, device="meta"),)
    return count(capture(model.eval(), inputs), inputs, **options)


def resnet_report(blocks=(2, 1)):
    """Of a residual network without data, under a convention whose bit operations are not whole numbers."""
    with torch.device("meta"):
        return report_of(resnet(blocks, width=4), 1, 3, 8, 8, convention="uniq_bops")


def everything(branch):
    """A branch of a tree with all that is below it."""
    return [branch, *(found for child in branch.children for found in everything(child))]
