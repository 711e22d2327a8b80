"""Transformed graphs in milliseconds: the original, each pass alone and the chain, by eager, compiled and int8.

Run with ``pytest benchmarks/bench_transformed.py`` (``-k "chain and not batch64"`` for a part);
``--benchmark-save NAME`` keeps a run, and ``--benchmark-compare`` puts a later one beside it. The network is a
ResNet-18 for 32 x 32 images with random weights, which changes no time.
"""

from functools import cache

import pytest
import torch
from torch import nn

import chainfx
from chainfx import zoo
from chainfx.passes import Fuse, LowRank, Pass, PostTrainingQuantize, PruneChannels

pytest_plugins = ["chainfx.pytest_fixtures"]

QUANTIZE = PostTrainingQuantize(7, 8)  # runs in integers on processors without VNNI too
PASSES: dict[str, tuple[Pass, ...]] = {
    "original": (),
    "fuse": (Fuse(),),
    "prune": (PruneChannels(0.5),),
    "low-rank": (LowRank(0.5, keep=True),),
    "quantize": (QUANTIZE,),
    "chain": (PruneChannels(0.5), QUANTIZE, Fuse()),
}


def images(batch: int) -> torch.Tensor:
    """The same random images for every network."""
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@cache
def network(name: str) -> nn.Module:
    """The original, or what the passes of that name make of it."""
    torch.manual_seed(0)
    original = zoo.resnet((2, 2, 2, 2), 64).eval()
    if not PASSES[name]:
        return original
    x = images(8)
    return chainfx.compile(original, list(PASSES[name]), example_inputs=x, calibration=[x])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark(max_time=0.5, min_rounds=5)
@pytest.mark.parametrize("batch", [1, 64], ids="batch{}".format)
@pytest.mark.parametrize("way", ["eager", "compiled", "int8"])
@pytest.mark.parametrize("name", PASSES)
def test_transformed(benchmark_network, name, way, batch):
    answers = benchmark_network(network(name), (images(batch),), way)
    assert answers.shape == (batch, 10) and bool(answers.isfinite().all())
