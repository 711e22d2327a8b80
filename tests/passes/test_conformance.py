from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from chainfx import zoo
from chainfx.passes import (
    Distill,
    EarlyExit,
    Fuse,
    Granularity,
    Kind,
    LowRank,
    Pass,
    PassInfo,
    PassResult,
    PruneChannels,
    PruneWeights,
    Quantize,
)
from chainfx.testing import check_pass
from tests.nets import images, small_resnet, warm

PASSES = [
    Distill(depth=0.5),
    Distill(width=0.5, init="random"),
    EarlyExit(exits=1),
    Fuse(),
    LowRank(energy=0.6),
    PruneWeights(0.7),
    PruneChannels(0.0),
    PruneChannels(0.4, importance="random"),
    PruneChannels(0.4, importance="bn"),
    Quantize(1, 2),
    Quantize(32, 32, first=None, last=None),
    Quantize(4, 4, granularity="tensor"),
]
NETS = {
    "resnet": (lambda: small_resnet((2, 2)), 1, 8),
    "option-a": (lambda: warm(zoo.resnet(blocks=(2, 2), width=4, shortcut="A")), 3, 8),
    "vgg": (lambda: warm(zoo.vgg(layers=(2, 2), width=4)), 3, 8),
    "mobilenet": (lambda: warm(zoo.mobilenet_v2(width=0.1)), 3, 16),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("one", PASSES, ids=lambda one: one.label)
def test_every_pass_keeps_the_contract_on_every_zoo_family(one, net):
    make, channels, size = NETS[net]
    torch.manual_seed(0)
    result = check_pass(one, make(), (images(4, size, channels),), targets=10)
    identity = one in (PruneChannels(0.0), Quantize(32, 32, first=None, last=None))
    assert result.modified != identity


@dataclass(frozen=True)
class Dishonest(Pass):
    info: ClassVar[PassInfo] = PassInfo("dishonest", Kind.STATIC, Granularity.LAYER)
    what: str = "modified"

    def apply(self, graph_module, context, /):
        if self.what == "foreign":
            next(context.reference.parameters()).data.add_(1)
        if self.what == "random":
            next(graph_module.parameters()).data.normal_()
        return PassResult(graph_module, modified=self.what in ("modified", "random"))


@pytest.mark.parametrize(
    ("what", "rule"),
    [
        ("modified", "modified=True is not what happened"),
        ("foreign", "the pass changed a graph that is not its own"),
        ("random", "two runs with the same seed differ"),
    ],
)
def test_the_suite_can_fail(what, rule):
    with pytest.raises(AssertionError) as caught:
        check_pass(Dishonest(what), nn.Linear(3, 2), (torch.randn(2, 3),))
    assert str(caught.value) == rule
