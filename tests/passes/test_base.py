from dataclasses import MISSING, dataclass, field, fields
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
import torch

from chainfx.errors import PassError
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
    PassSummary,
    PostTrainingQuantize,
    PruneChannels,
    PruneHeads,
    PruneWeights,
    Quantize,
    ShareWeights,
    TorchaoQuantize,
    registry,
)
from chainfx.passes.base import PassContext, PassResult

PASSES = [
    Distill(depth=(2, 1), temperature=2.0),
    EarlyExit(exits=("a", "b"), threshold=0.5),
    Fuse(),
    OptimizeGraph(),
    Bf16(skip=("fc.*",)),
    LowRank(macs=0.5, scheme="spatial", skip=("fc",)),
    PruneHeads(0.25, width_ratio=0.1, importance="l2"),
    PruneWeights(pattern="2:4", rounds=3),
    PruneChannels(0.3, importance="l2", round_to=4),
    Quantize(2, 4, first=None, skip=("fc.*",)),
    PostTrainingQuantize(7, clips="min-max", skip=("fc.*",)),
    ShareWeights(3, budget=2.5, groups=("fc.*",), rounds=2),
    Encode(coder="adaptive"),
    TorchaoQuantize("Int8WeightOnlyConfig()", skip=("fc",)),
]


@pytest.mark.parametrize("one", PASSES, ids=lambda one: one.info.name)
def test_options_round_trip_through_json_and_the_registry(one):
    import json

    spec = json.loads(json.dumps(one.spec()))
    assert registry.pass_from_spec(spec) == one
    assert type(one).from_spec(spec) == one
    with pytest.raises(AttributeError):
        one.anything = 1


def test_the_passes_declare_what_the_paper_says():
    declared = {cls.info.name: (cls.info.kind, cls.info.granularity) for cls in map(type, PASSES)}
    assert declared == {
        "distill": (Kind.STATIC, Granularity.ARCHITECTURE),
        "prune-channels": (Kind.STATIC, Granularity.NEURON),
        "quantize": (Kind.STATIC, Granularity.SUB_NEURON),
        "early-exit": (Kind.DYNAMIC, Granularity.ARCHITECTURE),
        "fuse": (Kind.STATIC, Granularity.LAYER),
        "low-rank": (Kind.STATIC, Granularity.LAYER),
        "prune-heads": (Kind.STATIC, Granularity.NEURON),
        "prune-weights": (Kind.STATIC, Granularity.SUB_NEURON),
        "share-weights": (Kind.STATIC, Granularity.SUB_NEURON),
        "encode": (Kind.STATIC, Granularity.BIT),
        "post-training-quantize": (Kind.STATIC, Granularity.SUB_NEURON),
        "bf16": (Kind.STATIC, Granularity.BIT),
        "optimize-graph": (Kind.STATIC, Granularity.LAYER),
        "torchao-quantize": (Kind.STATIC, Granularity.SUB_NEURON),
    }
    assert registry.pass_names() == tuple(sorted(declared))


DEFAULTS = {
    "distill": {"init": "inherit", "temperature": 4.0, "hard_weight": 0.1, "soft_weight": 0.9},
    "early-exit": {"exits": 3, "max_drop": 0.005, "criterion": "max-softmax", "keep": False, "body": "frozen"},
    "encode": {"coder": "static"},
    "low-rank": {"rounds": 1, "pull": 0.01, "scheme": "tucker", "keep": False},
    "post-training-quantize": {"weights": 8, "activations": 8, "clips": "least-squares"},
    "prune-channels": {
        **{"importance": "l1", "round_to": "auto", "scope": "uniform", "max_ratio": 1.0, "rounds": 1},
        **{"schedule": "linear", "compensate": False, "keep": False},
    },
    "prune-heads": {"ratio": 0.5, "width_ratio": 0.0, "importance": "l1", "compensate": False},
    "prune-weights": {
        **{"pattern": "unstructured", "scope": "layer", "rounds": 1, "length": 0.0, "scale_dropout": False},
    },
    "quantize": {
        **{"weights": 8, "activations": 8, "first": 8, "last": 8, "granularity": "channel", "residuals": True},
    },
    "share-weights": {
        **{"bits": 5, "init": "linear", "biases": False, "rounds": 1, "pull": 0.01, "entries": "float32"},
    },
}


def test_the_defaults_of_the_options_are_a_part_of_the_interface():
    """Those that are neither nothing nor to be given: with others, chains that leave them out would be other chains."""
    for cls in map(type, PASSES):
        found = {each.name: each.default for each in fields(cls)}
        kept = {name: value for name, value in found.items() if value not in (None, (), MISSING)}
        assert kept == DEFAULTS.get(cls.info.name, {})


def test_a_label_shows_what_is_not_default():
    assert Quantize(2, 8, last=None).label == "quantize(2, 8, last=None)"
    assert Quantize().label == "quantize(8, 8)"
    assert Fuse().label == "fuse()"


def test_unknown_options_and_names():
    with pytest.raises(PassError) as caught:
        Quantize.from_spec({"weights": 4, "bits": 3})
    assert str(caught.value) == (
        "quantize: unknown option 'bits'; use one of activations, first, granularity, last, residuals, scheme, skip, "
        "weights."
    )
    with pytest.raises(PassError) as caught:
        registry.get_pass("quantise")
    assert str(caught.value) == (
        "there is no pass named 'quantise'; did you mean 'quantize'? "
        "installed are bf16, distill, early-exit, encode, fuse, low-rank, optimize-graph, post-training-quantize, "
        "prune-channels, prune-heads, prune-weights, quantize, share-weights, torchao-quantize."
    )


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (PruneChannels, {"ratio": "a"}),
        (PruneChannels, {"ratio": float("nan")}),
        (EarlyExit, {"exits": "a"}),
        (EarlyExit, {"threshold": "a"}),
        (EarlyExit, {"max_drop": None}),
        (Distill, {"width": "a"}),
        (Distill, {"depth": 0.5, "soft_weight": "a"}),
    ],
)
def test_an_option_of_a_wrong_type_is_out_of_range_like_any_other(cls, options):
    with pytest.raises(PassError, match=r"is out of range; use "):
        cls(**options)


@dataclass(frozen=True)
class Misnamed(Pass):
    info: ClassVar[PassInfo] = PassInfo("other", Kind.STATIC, Granularity.LAYER)

    def apply(self, graph_module, context, /):
        return PassResult(graph_module, modified=False)


@dataclass(frozen=True)
class Undocumented(Pass):
    limit: float
    device: object = torch.device("cpu")
    layers: list = field(default_factory=lambda: ["a", "b"])

    info: ClassVar[PassInfo] = PassInfo("mine", Kind.DYNAMIC, Granularity.BIT, needs=frozenset({"training"}))

    def apply(self, graph_module, context, /):
        return PassResult(graph_module, modified=False)


def test_the_summary_of_a_pass_without_docstring_and_with_all_kinds_of_options():
    summary = PassSummary.of(Undocumented)
    assert (summary.purpose, summary.required) == ("", ("limit",))
    assert summary.options == {"device": torch.device("cpu"), "layers": ["a", "b"]}
    assert summary.to_dict() == {
        "name": "mine",
        "kind": "dynamic",
        "granularity": "bit",
        "needs": ["training"],
        "purpose": "",
        "options": {"device": "device(type='cpu')", "layers": ["a", "b"]},
        "required": ["limit"],
    }


def test_clashes_and_wrong_entry_points_name_both_sides(monkeypatch):
    def offer(*points):
        registry._found.cache_clear()
        monkeypatch.setattr(registry, "entry_points", lambda group: points)

    offer(EntryPoint("fuse", "a.b:C", "chainfx.passes"), EntryPoint("fuse", "d.e:F", "chainfx.passes"))
    with pytest.raises(PassError) as caught:
        registry.pass_names()
    assert str(caught.value) == "two packages offer a pass named 'fuse': a.b:C and d.e:F; uninstall one."
    offer(EntryPoint("mine", "tests.passes.test_base:Misnamed", "chainfx.passes"))
    with pytest.raises(PassError) as caught:
        registry.get_pass("mine")
    assert str(caught.value) == "the entry point 'mine' names a pass that calls itself 'other'; make them equal."
    offer(EntryPoint("mine", "tests.passes.test_base:PASSES", "chainfx.passes"))
    with pytest.raises(PassError) as caught:
        registry.get_pass("mine")
    assert str(caught.value) == (
        "the entry point 'mine' (tests.passes.test_base:PASSES) is not a Pass; mend its package."
    )
    offer(EntryPoint("mine", "nowhere.at.all:Mine", "chainfx.passes"))
    with pytest.raises(PassError) as caught:
        registry.get_pass("mine")
    assert str(caught.value) == (
        "the pass 'mine' (nowhere.at.all:Mine) cannot be imported: No module named 'nowhere'; "
        "mend or remove its package."
    )
    registry._found.cache_clear()


def test_random_numbers_depend_on_seed_and_purpose_alone():
    def draw(seed, purpose):
        return torch.rand(3, generator=PassContext(None, (), seed=seed).rng(purpose)).tolist()

    assert draw(0, "a") == draw(0, "a")
    assert draw(0, "a") != draw(1, "a")
    assert draw(0, "a") != draw(0, "b")
