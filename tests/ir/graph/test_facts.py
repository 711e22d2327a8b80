import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainfx.deploy.lower import to_codes
from chainfx.ir.artifact import load_graph, save_graph
from chainfx.ir.capture import capture
from chainfx.ir.graph import FACTS, edit, ops
from chainfx.ir.graph.facts import BitWidths, Codebook, ExitRule, FactChange, Mask, facts_of
from tests.nets import graph_of, images, small_resnet

X = torch.ones(2, 4)


class Everything(nn.Module):
    """A masked and quantized layer, one that reads a codebook, a plain one, and an exit."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.arange(16.0).reshape(4, 4))
        self.register_buffer("m", torch.arange(16).reshape(4, 4) % 2 == 0)
        self.register_buffer("codes", torch.arange(16, dtype=torch.uint8).reshape(4, 4) % 3)
        self.codebook = nn.Parameter(torch.tensor([0.0, 0.5, 1.0]))
        self.clip = nn.Parameter(torch.tensor(2.0))
        self.plain = nn.Linear(4, 3)

    def forward(self, x):
        weight = ops.mask_weight(ops.quantize_weight(self.w, 4, "dorefa", 0), self.m, "2:4")
        y = F.linear(ops.quantize_activation(x, self.clip, 8, True), weight)
        early = ops.exit_point(self.plain(y), "early", 0.75, "margin")
        return early, self.plain(F.linear(y, ops.coded_weight(ops.look_up(self.codes, self.codebook), "static")))


@pytest.fixture
def graph_module():
    return capture(Everything(), (X,))


def test_every_literal_is_read_by_the_node_of_its_layer(graph_module):
    facts = facts_of(graph_module)
    assert facts.layers == ("w_1", "plain", "codes_1", "plain_1")
    assert facts.bit_widths == {"w_1": BitWidths(4, 8, "dorefa", 0, True)}
    assert facts.exits == {"early": ExitRule(0.75, "margin")}
    (mask,), (codebook,) = facts.masks.values(), facts.codebooks.values()
    assert list(facts.masks) == ["w_1"] and list(facts.codebooks) == ["codes_1"]
    assert (mask.pattern, mask.shape, mask.kept) == ("2:4", (4, 4), 8)
    assert (codebook.entries, codebook.shape) == (3, (4, 4))
    assert facts.names == FACTS == {"bit-widths", "codebooks", "codings", "exits", "masks"}


def test_a_network_without_compression_has_no_facts_but_its_layers():
    facts = facts_of(graph_of(small_resnet((1, 1)), images()))
    assert facts.names == frozenset() and "conv1" in facts.layers and "fc" in facts.layers


def test_equal_graphs_have_equal_facts_after_copying_saving_and_lowering(graph_module, tmp_path):
    facts = facts_of(graph_module)
    save_graph(graph_module, tmp_path)
    for other in (copy.deepcopy(graph_module), load_graph(tmp_path)[0]):
        assert facts_of(other) == facts and facts.difference(facts_of(other)) == ()
        assert hash(facts_of(other)) == hash(facts)
    deployed = facts_of(to_codes(graph_module))
    widths = dataclasses.replace(facts.bit_widths["w_1"], axis=None)
    assert deployed == dataclasses.replace(facts, bit_widths={"w_1": widths})
    with pytest.raises(dataclasses.FrozenInstanceError):
        facts.exits = {}


def node_of(graph_module, target):
    (node,) = graph_module.graph.find_nodes(op="call_function", target=target)
    return node


@pytest.mark.parametrize(
    ("target", "place", "literal", "text"),
    [
        (
            ops.quantize_weight,
            1,
            3,
            "bit widths of 'w_1' from weight 4 (dorefa, axis 0), signed input 8 to weight 3 (dorefa, axis 0), "
            "signed input 8",
        ),
        (
            ops.quantize_activation,
            3,
            False,
            "bit widths of 'w_1' from weight 4 (dorefa, axis 0), signed input 8 to weight 4 (dorefa, axis 0), input 8",
        ),
        (ops.exit_point, 2, 0.5, "exit 'early' from threshold 0.75 by margin to threshold 0.5 by margin"),
        (ops.exit_point, 3, "entropy", "exit 'early' from threshold 0.75 by margin to threshold 0.75 by entropy"),
    ],
)
def test_a_literal_that_differs_is_one_change_that_says_where(graph_module, target, place, literal, text):
    before = facts_of(graph_module)
    node_of(graph_module, target).update_arg(place, literal)
    (change,) = before.difference(facts_of(graph_module))
    assert str(change) == text


def test_a_mask_with_other_weights_differs_even_if_it_keeps_as_many(graph_module):
    before = facts_of(graph_module)
    graph_module.m.logical_not_()
    (change,) = before.difference(facts_of(graph_module))
    old, new = before.masks["w_1"], facts_of(graph_module).masks["w_1"]
    assert change == FactChange("masks", "w_1", old, new) and old.kept == new.kept == 8
    assert str(change) == (
        f"mask of 'w_1' from 2:4, 8 of 16 weights kept (content {old.content[:8]}) "
        f"to 2:4, 8 of 16 weights kept (content {new.content[:8]})"
    )


def test_codes_are_facts_and_the_values_of_a_codebook_are_parameters(graph_module):
    before = facts_of(graph_module)
    with torch.no_grad():
        graph_module.codebook.add_(1)
        graph_module.w.add_(1)
    assert before == facts_of(graph_module)
    graph_module.codes[0, 0] = 2
    (change,) = before.difference(facts_of(graph_module))
    assert str(change).startswith("codebook of 'codes_1' from 3 entries for 16 weights (content ")


def test_what_only_one_graph_has_is_none_in_the_other(graph_module):
    before = facts_of(graph_module)
    mask = node_of(graph_module, ops.mask_weight)
    mask.replace_all_uses_with(mask.args[0])
    edit.tidy(graph_module)
    after = facts_of(graph_module)
    assert after.masks == {} and after.names == {"bit-widths", "codebooks", "codings", "exits"}
    gone, come = before.difference(after)[0], after.difference(before)[0]
    assert isinstance(gone.before, Mask) and gone.after is None and str(gone).endswith("to none")
    assert come.before is None and str(come).startswith("mask of 'w_1' from none to 2:4, 8 of 16")


def test_differences_are_sorted_by_fact_and_come_in_graph_order(graph_module):
    changes = facts_of(capture(nn.Linear(4, 3), (X,))).difference(facts_of(graph_module))
    assert [(change.fact, change.where) for change in changes] == [
        ("bit-widths", "w_1"),
        ("codebooks", "codes_1"),
        ("codings", "codes_1"),
        ("exits", "early"),
        ("masks", "w_1"),
    ]
    assert isinstance(changes[1].after, Codebook)
