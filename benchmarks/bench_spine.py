"""What the spine costs before any training: capture, plan and count of a ResNet-50.

Run with ``make bench`` or ``pytest benchmarks/bench_spine.py``.
"""

from functools import cache

import pytest
import torch
from torch.fx import GraphModule

import chainfx
from chainfx.ir.capture.ways import capture
from chainfx.passes import Distill, EarlyExit, PruneChannels, Quantize

IMAGE = (torch.zeros(1, 3, 224, 224, device="meta"),)


def resnet50() -> torch.nn.Module:
    import torchvision

    with torch.device("meta"):
        return torchvision.models.resnet50().eval()


@cache
def captured() -> GraphModule:
    return capture(resnet50(), IMAGE)


def test_capture(benchmark):
    graph_module = benchmark(capture, resnet50(), IMAGE)
    assert isinstance(graph_module, GraphModule)


@pytest.mark.parametrize("convention", ["mac_bw_ba", "strict"])
def test_count(benchmark, convention):
    report = benchmark(chainfx.count, captured(), IMAGE, convention)
    assert report.macs == 4_089_184_256
    assert not report.uncounted


def test_plan(benchmark):
    passes = [EarlyExit(), Quantize(), PruneChannels(), Distill(depth=0.5)]
    made = benchmark(chainfx.plan, passes)
    assert made.order == ("distill", "prune-channels", "quantize", "early-exit")
