import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from chainfx import zoo
from chainfx.passes import (
    Bf16,
    Distill,
    EarlyExit,
    Encode,
    Fuse,
    Granularity,
    Kind,
    LowRank,
    OptimizeGraph,
    Pass,
    PassInfo,
    PassResult,
    PostTrainingQuantize,
    PruneChannels,
    PruneHeads,
    PruneWeights,
    Quantize,
    ShareWeights,
    Skipped,
)
from chainfx.testing import check_pass
from tests.budget import mostly_slow
from tests.nets import Scaled, images, small_resnet, warm

PASSES = [
    Distill(depth=0.5),
    Distill(width=0.5, init="random"),
    EarlyExit(exits=1),
    Fuse(),
    LowRank(energy=0.6),
    OptimizeGraph(),
    PruneWeights(0.7),
    PruneChannels(0.0),
    PruneChannels(0.4, importance="random"),
    PruneChannels(0.4, importance="bn"),
    Quantize(1, 2),
    Quantize(32, 32, first=None, last=None),
    Quantize(4, 4, granularity="tensor"),
    ShareWeights(1),
    Encode(),
    Bf16(),
]
NETS = {
    "resnet": (lambda: small_resnet((2, 2)), 1, 8),
    "option-a": (lambda: warm(zoo.resnet(blocks=(2, 2), width=4, shortcut="A")), 3, 8),
    "vgg": (lambda: warm(zoo.vgg(layers=(2, 2), width=4)), 3, 8),
    "mobilenet": (lambda: warm(zoo.mobilenet_v2(width=0.1)), 3, 16),
}


def quick_in_turns():
    """Every pass on every network; quick are each pass on one network, and three passes on all but the deepest."""
    everywhere = (Fuse(), PruneChannels(0.4, importance="random"), Quantize(4, 4, granularity="tensor"))
    cases = [(one, net) for one in PASSES for net in NETS]
    shallow = [net for net in NETS if net != "mobilenet"]
    in_turns = {(one, shallow[index % len(shallow)]) for index, one in enumerate(PASSES)}
    return mostly_slow(cases, in_turns | {(one, net) for one in everywhere for net in shallow})


@pytest.mark.parametrize("case", quick_in_turns(), ids=lambda case: f"{case[0].label}-{case[1]}")
def test_every_pass_keeps_the_contract_on_every_zoo_family(case):
    one, net = case
    make, channels, size = NETS[net]
    torch.manual_seed(0)
    result = check_pass(one, make(), (images(4, size, channels),), targets=10)
    identity = one in (PruneChannels(0.0), Quantize(32, 32, first=None, last=None), OptimizeGraph())
    assert result.modified != identity


class Tagger(nn.Module):
    """Weights of all kinds: a table, an embedding tied to the last layer, attention, a GRU, a computed weight."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Parameter(torch.randn(6, 8))
        self.q, self.k, self.v, self.proj = (nn.Linear(8, 8) for _ in range(4))
        self.enter, self.scaled = nn.Linear(8, 12), Scaled(nn.Linear(12, 8))
        self.gru, self.out = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 20, bias=False)
        self.out.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids) + self.places
        q, k, v = (layer(x).unflatten(-1, (4, 2)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.proj(((q @ k.mT / math.sqrt(2)).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return self.out(self.gru(self.scaled(self.enter(x).relu()))[0])


WORDS = torch.arange(24).reshape(4, 6) % 20
OF_WEIGHTS = [
    *(LowRank(energy=0.6), LowRank(macs=0.9), PruneWeights(0.7), PruneWeights(0.5, rounds=2)),
    *(PruneWeights(0.0), PruneWeights(pattern="2:4"), PruneWeights(pattern="1:3")),
    *(PruneChannels(0.0), PruneChannels(0.4, importance="random"), PruneChannels(0.4, skip=("enter",))),
    *(PruneChannels(0.5, rounds=2), PruneChannels(0.4, scope="global"), PruneChannels(0.4, include=("q",))),
    *(PruneHeads(0.5), PruneHeads(0.0), PruneHeads(0.5, skip=("k",)), PruneHeads(0.25, width_ratio=0.5)),
    *(PostTrainingQuantize(4, 8), PostTrainingQuantize(8, 32), PostTrainingQuantize(32, 8)),
    *(ShareWeights(3, biases=True), ShareWeights(2, rounds=2), ShareWeights(budget=4.0, skip=("k",))),
    *(Quantize(1, 2), Quantize(32, 8), Quantize(4, 32, first=None, last=32, skip=("enter",)), Bf16()),
]


@pytest.mark.parametrize("one", mostly_slow(OF_WEIGHTS, OF_WEIGHTS[::2]), ids=lambda one: one.label)
def test_no_weight_of_any_kind_is_left_in_silence(one):
    torch.manual_seed(0)
    assert one.info.domain == "weights"
    check_pass(one, Tagger().eval(), (WORDS,))


@dataclass(frozen=True)
class Forgetful(Pass):
    """Quantize, but for one of the names in ``skipped``, which may become another."""

    info: ClassVar[PassInfo] = Quantize.info
    name: str = ""
    instead: str | None = None

    def apply(self, graph_module, context, /):
        result = Quantize(4, 8).apply(graph_module, context)
        others = tuple(item for item in result.skipped if item.node != self.name)
        assert len(others) < len(result.skipped)
        return replace(result, skipped=others + ((Skipped(self.instead, "why not"),) if self.instead else ()))


@pytest.mark.parametrize(
    ("name", "silent"),
    [
        ("places", ["places"]),
        ("gru", ["gru.weight_ih_l0", "gru.weight_hh_l0"]),
        ("scaled_layer", ["scaled.layer.weight"]),
    ],
)
def test_a_name_that_is_not_said_is_noticed(name, silent):
    with pytest.raises(AssertionError) as caught:
        check_pass(Forgetful(name), Tagger().eval(), (WORDS,))
    assert str(caught.value) == f"parameters are neither changed nor named in skipped: {silent}"


def test_a_parameter_is_named_by_its_reader_its_path_or_its_module_and_nothing_else():
    for instead in ("add", "places"):
        check_pass(Forgetful("places", instead), Tagger().eval(), (WORDS,))
    check_pass(Forgetful("gru", "gru"), Tagger().eval(), (WORDS,))
    with pytest.raises(AssertionError) as caught:
        check_pass(Forgetful("places", "position"), Tagger().eval(), (WORDS,))
    assert str(caught.value) == "skipped names what is no node, parameter or module: ['position']"


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
