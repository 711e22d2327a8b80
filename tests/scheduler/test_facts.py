"""The runner holds passes and trainers to the facts of the graph: what is not declared does not change."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import chainfx
from chainfx.errors import PassError, TuningError
from chainfx.ir.capture import capture
from chainfx.ir.graph import FACTS, edit, exits_of, facts_of, layers_of, ops
from chainfx.passes import Distill, EarlyExit, Fuse, LowRank, PruneChannels, PruneHeads, PruneWeights, Quantize
from chainfx.passes.base import Granularity, Kind, Pass, PassContext, PassInfo, PassResult
from chainfx.scheduler.fact_checks import check_chain
from chainfx.scheduler.planning import plan
from chainfx.scheduler.runner import run
from chainfx.testing import check_pass
from tests.nets import images, small_resnet
from tests.trainers import FakeTrainer

ALL_EXITS = EarlyExit(exits=1, threshold=0.5, keep=True)
QUANTIZED = Quantize(4, 4, first=None, last=None)


def staged(passes, trainer=None, model=None):
    x = images(8)
    graph_module = capture(model or small_resnet((1, 1)), (x,))
    chain = plan(passes, order="given")
    return list(run(graph_module, chain, example_inputs=(x,), trainer=trainer or FakeTrainer(x)))


def declared(**facts):
    sets = {name: frozenset({fact}) for name, fact in facts.items()}
    return PassInfo("meddle", Kind.STATIC, Granularity.LAYER, domain="network", **sets)


def unmask(graph_module):
    for node in graph_module.graph.find_nodes(op="call_function", target=ops.mask_weight):
        node.replace_all_uses_with(node.args[0])
    edit.tidy(graph_module)


def unmask_one(graph_module):
    node = graph_module.graph.find_nodes(op="call_function", target=ops.mask_weight)[0]
    node.replace_all_uses_with(node.args[0])
    edit.tidy(graph_module)


def narrow_widths(graph_module):
    for node in graph_module.graph.find_nodes(op="call_function", target=ops.quantize_weight):
        node.update_arg(1, 3)
    graph_module.recompile()


def move_threshold(graph_module):
    exits_of(graph_module)[0].node.update_arg(2, 0.25)
    graph_module.recompile()


def flip_mask(graph_module):
    node = graph_module.graph.find_nodes(op="call_function", target=ops.mask_weight)[0]
    edit.get_tensor(graph_module, node.args[1].target).view(-1)[0].logical_not_()


def meddling(change, info=None, place="apply"):
    """A pass that does ``change`` to the graph in ``apply`` or in ``finish``."""

    @dataclass(frozen=True)
    class Meddle(Pass):
        def apply(self, graph_module, context, /):
            if place == "apply":
                change(graph_module)
            return PassResult(graph_module, modified=True)

        def finish(self, graph_module, context, /):
            if place == "finish":
                change(graph_module)
            return PassResult(graph_module, modified=True)

    Meddle.info = info or declared()
    return Meddle()


def text_of(error, *passes, **options):
    with pytest.raises(error) as caught:
        staged(passes, **options)
    return str(caught.value)


def first_mask(stage):
    where, mask = next(iter(facts_of(stage.graph_module).masks.items()))
    return where, mask.content[:8]


@pytest.mark.parametrize("place", ["apply", "finish"])
def test_a_pass_that_changes_a_fact_it_does_not_declare_is_refused(place):
    where, content = first_mask(staged([PruneWeights(0.5)])[-1])
    assert text_of(PassError, PruneWeights(0.5), meddling(unmask_one, place=place)) == (
        f"meddle: it changed the mask of '{where}' from unstructured, 18 of 36 weights kept (content {content}) to "
        f"none, and does not declare that; keep it, or name 'masks' in what its PassInfo establishes or invalidates."
    )
    assert text_of(PassError, QUANTIZED, meddling(narrow_widths, place=place)) == (
        "meddle: it changed the bit widths of 'conv1' from weight 4 (dorefa, axis 0), signed input 4 to weight 3 "
        "(dorefa, axis 0), signed input 4, and does not declare that; keep it, or name 'bit-widths' in what its "
        "PassInfo establishes or invalidates."
    )
    assert text_of(PassError, ALL_EXITS, meddling(move_threshold, place=place)) == (
        "meddle: it changed the exit 'exit1' from threshold 0.5 by max-softmax to threshold 0.25 by max-softmax, and "
        "does not declare that; keep it, or name 'exits' in what its PassInfo establishes or invalidates."
    )


def test_a_mask_whose_values_a_pass_changed_is_a_changed_fact():
    assert "meddle: it changed the mask of 'conv1' from unstructured, 18 of 36 weights kept" in text_of(
        PassError, PruneWeights(0.5), meddling(flip_mask)
    )


def test_a_pass_that_puts_a_mask_where_none_was_declares_that():
    def mask_fc(graph_module):
        (layer,) = (each.node for each in layers_of(graph_module) if each.name == "fc")
        edit.set_tensor(graph_module, "own_mask", torch.ones(10, 8, dtype=torch.bool), parameter=False)
        with graph_module.graph.inserting_before(layer):
            arguments = (layer.args[1], graph_module.graph.get_attr("own_mask"), "unstructured")
            layer.update_arg(1, graph_module.graph.call_function(ops.mask_weight, arguments))
        graph_module.recompile()

    assert text_of(PassError, meddling(mask_fc)).startswith("meddle: it changed the mask of 'fc' from none to ")
    (_, stage) = staged([meddling(mask_fc, declared(establishes="masks"))])
    assert list(facts_of(stage.graph_module).masks) == ["fc"]


@pytest.mark.parametrize("how", ["establishes", "invalidates"])
def test_a_declared_change_is_fine(how):
    stages = staged([meddling(unmask, declared(**{how: "masks"}))])
    assert len(stages) == 2
    (_, _, stage) = staged([PruneWeights(0.5), meddling(unmask, declared(establishes="masks"))])
    assert facts_of(stage.graph_module).names == frozenset()


def test_something_of_every_fact_must_be_left():
    """All masked layers went with a block: nothing that was masked is left, though no single layer lost its mask."""

    def drop_masked(graph_module):
        (layer,) = (each.node for each in layers_of(graph_module) if each.name == "stages_0_0_conv2")
        layer.replace_all_uses_with(layer.args[0])
        edit.tidy(graph_module)

    skip = ("conv1", "fc", "stages.0.0.conv1", "stages.1.*")
    assert text_of(PassError, PruneWeights(0.5, skip=skip), meddling(drop_masked)) == (
        "meddle: nothing is left of the masks that the network had, and it does not declare that; "
        "keep some, or name 'masks' in what its PassInfo invalidates."
    )
    assert len(staged([PruneWeights(0.5, skip=skip[:-1]), meddling(drop_masked)])) == 3


class Meddler(FakeTrainer):
    """A trainer that does ``change`` to the graph in its last tuning."""

    def __init__(self, x, change, tunings):
        super().__init__(x)
        self.change, self.tunings = change, tunings

    def tune(self, graph_module, request, *, seed, on_epoch):
        super().tune(graph_module, request, seed=seed, on_epoch=on_epoch)
        if len(self.requests) == self.tunings:
            self.change(graph_module)


def test_a_trainer_that_moves_a_mask_is_refused():
    (_, stage) = staged([PruneWeights(0.5)])
    _, content = first_mask(stage)
    flip_mask(stage.graph_module)
    new = facts_of(stage.graph_module).masks["conv1"]
    assert text_of(TuningError, PruneWeights(0.5), trainer=Meddler(images(8), flip_mask, 1)) == (
        f"prune-weights: tuning changed the mask of 'conv1' from unstructured, 18 of 36 weights kept (content "
        f"{content}) to unstructured, {new.kept} of 36 weights kept (content {new.content[:8]}); "
        f"a trainer may change the values of parameters only."
    )


def test_a_trainer_that_moves_widths_or_exits_is_refused():
    assert text_of(TuningError, QUANTIZED, trainer=Meddler(images(8), narrow_widths, 1)) == (
        "quantize: tuning changed the bit widths of 'conv1' from weight 4 (dorefa, axis 0), signed input 4 to weight 3 "
        "(dorefa, axis 0), signed input 4; a trainer may change the values of parameters only."
    )
    chain = (ALL_EXITS, PruneChannels(0.25))
    assert text_of(TuningError, *chain, trainer=Meddler(images(8), move_threshold, 2)) == (
        "prune-channels: tuning changed the exit 'exit1' from threshold 0.5 by max-softmax to threshold 0.25 by "
        "max-softmax; a trainer may change the values of parameters only."
    )


@dataclass(frozen=True)
class Share(Pass):
    """Every weight reads one of two values: what a codebook is, in the least of code."""

    info: ClassVar[PassInfo] = PassInfo(
        "share", Kind.STATIC, Granularity.SUB_NEURON, establishes=frozenset({"codebooks"})
    )

    def apply(self, graph_module, context: PassContext, /):
        layer = next(layers_of(graph_module)).node
        weight = edit.get_tensor(graph_module, layer.args[1].target)
        edit.set_tensor(graph_module, "codes", (weight > 0).to(torch.uint8), parameter=False)
        edit.set_tensor(graph_module, "codebook", torch.tensor([-0.1, 0.1]), parameter=True)
        with graph_module.graph.inserting_before(layer):
            stored = [graph_module.graph.get_attr(name) for name in ("codes", "codebook")]
            layer.update_arg(1, graph_module.graph.call_function(ops.look_up, tuple(stored)))
        edit.tidy(graph_module)
        return PassResult(graph_module, modified=True, tune=chainfx.passes.TuneRequest())


def test_a_trainer_may_move_the_values_of_a_codebook_and_not_its_codes():
    (_, stage) = staged([Share()])
    assert not torch.equal(stage.graph_module.codebook, torch.tensor([-0.1, 0.1]))
    text = text_of(TuningError, Share(), trainer=Meddler(images(8), lambda g: g.codes.view(-1)[0].bitwise_xor_(1), 1))
    assert text.startswith("share: tuning changed the codebook of 'conv1' from 2 entries for 36 weights (content ")


OWN = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("first", "lost"), [(QUANTIZED, "bit-widths"), (PruneWeights(0.5), "masks"), (ALL_EXITS, "exits")]
)
def test_a_student_of_one_s_own_after_what_it_would_lose_is_refused_before_anything_is_trained(first, lost):
    trainer = FakeTrainer(images(8))
    name = first.info.name
    assert text_of(PassError, first, Distill(student=OWN), trainer=trainer) == (
        f"distill: it would lose the {lost} that {name} establishes before it; "
        f"let distill go first, as order='auto' does, or leave {name} out."
    )
    assert trainer.requests == []
    assert plan([first, Distill(student=OWN)]).order == ("distill", name)


def test_a_student_of_one_s_own_for_a_network_that_came_compressed_is_refused_too():
    x = images(8)
    graph_module = staged([PruneWeights(0.5), QUANTIZED])[-1].graph_module
    with pytest.raises(PassError) as caught:
        Distill(student=OWN).apply(graph_module, PassContext(graph_module, (x,)))
    assert str(caught.value) == (
        "distill: a student of one's own would lose the bit-widths and the masks of the network; distil first."
    )


def test_a_student_cut_out_of_the_network_keeps_its_facts():
    assert Distill(depth=0.5).invalidates == frozenset() and Distill(student=OWN).invalidates == FACTS
    stages = staged([PruneWeights(0.5), QUANTIZED, Distill(depth=0.5)], model=small_resnet((2, 2)))
    assert facts_of(stages[-1].graph_module).names == {"masks", "bit-widths"}
    assert not any(edge.kind == "fact" for edge in plan([QUANTIZED, Distill(depth=0.5)]).edges)


def needing(name, **facts):
    one = meddling(lambda graph_module: None, PassInfo(name, Kind.STATIC, Granularity.BIT, **facts))
    return dataclasses.replace(one)


def test_what_was_used_in_between_is_not_lost():
    masks = frozenset({"masks"})
    use, drop = needing("use", requires=masks), needing("drop", invalidates=masks)
    with pytest.raises(PassError, match="drop: it would lose the masks that prune-weights establishes before it; "):
        check_chain([PruneWeights(0.5), drop])
    check_chain([PruneWeights(0.5), use, drop])
    check_chain([PruneWeights(0.5), needing("both", requires=masks, invalidates=masks)])
    check_chain([PruneWeights(0.5), needing("anew", establishes=masks, invalidates=masks)])
    check_chain([drop, PruneWeights(0.5)])
    assert plan([PruneWeights(0.5), drop]).order == ("drop", "prune-weights")
    assert plan([drop, use, PruneWeights(0.5)]).order == ("prune-weights", "use", "drop")


def test_the_plan_says_that_a_student_comes_before_what_it_would_lose():
    made = plan([Distill(student=OWN), PruneWeights(0.5)], evidence=())
    assert str(made) == (
        "order: distill -> prune-weights\n"
        "  distill before prune-weights: architecture before sub-neuron [property: arXiv 2403.17447, sec. 5: static to "
        "dynamic, then large granularity to small]\n"
        "  distill before prune-weights: distill invalidates 'masks', which prune-weights establishes "
        "[fact: declared by the two passes]"
    )


def test_what_the_passes_declare():
    declared = {one.info.name: one.info for one in (Distill, EarlyExit, Fuse, LowRank, PruneChannels, PruneHeads)}
    declared |= {one.info.name: one.info for one in (PruneWeights, Quantize)}
    assert {name: set(info.establishes) for name, info in declared.items() if info.establishes} == {
        "early-exit": {"exits"},
        "prune-weights": {"masks"},
        "quantize": {"bit-widths"},
    }
    assert {name: info.invalidates for name, info in declared.items() if info.invalidates} == {"distill": FACTS}
    assert not any(info.requires for info in declared.values())


def test_heads_of_exits_and_factors_bring_facts_of_their_own():
    stages = staged([QUANTIZED, EarlyExit(exits=1, threshold=0.5, keep=True)])
    widths = facts_of(stages[-1].graph_module).bit_widths
    assert len(widths) == len(facts_of(stages[1].graph_module).bit_widths) + 3
    stages = staged([PruneWeights(0.5, skip=("stages.1.*",)), LowRank(energy=0.5)])
    before, after = (facts_of(stage.graph_module) for stage in stages[1:])
    assert before.masks == after.masks and len(after.layers) > len(before.layers)


def test_the_conformance_suite_holds_passes_to_their_facts():
    def quantize(graph_module):
        layer = next(layers_of(graph_module)).node
        with graph_module.graph.inserting_before(layer):
            arguments = (layer.args[1], 4, "uniform", None)
            layer.update_arg(1, graph_module.graph.call_function(ops.quantize_weight, arguments))
        graph_module.recompile()

    with pytest.raises(AssertionError) as caught:
        check_pass(meddling(quantize), small_resnet((1, 1)), (images(),))
    assert str(caught.value) == (
        "meddle: it changed the bit widths of 'conv1' from none to weight 4 (uniform, axis None), input 32, and does "
        "not declare that; keep it, or name 'bit-widths' in what its PassInfo establishes or invalidates."
    )
    check_pass(meddling(quantize, declared(establishes="bit-widths")), small_resnet((1, 1)), (images(),))
    with pytest.raises(AssertionError) as caught:
        check_pass(meddling(quantize, declared(establishes="ranges")), small_resnet((1, 1)), (images(),))
    assert str(caught.value) == "facts must be of ['bit-widths', 'codebooks', 'codings', 'exits', 'masks']"
